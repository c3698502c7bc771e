/* The flight recorder: the last events, in a ring of fixed size that one writer at a time fills and
 * anybody copies out meanwhile.
 *
 * It has no lock. Each slot carries the number of its event, 0 while it is written; a reader that
 * does not find the same number before and after its copy was overtaken by the writer. An event is
 * one cache line and costs a few nanoseconds: whoever records it says when it was, since it often
 * knows. */
#ifndef CC_BASE_TRACE_H
#define CC_BASE_TRACE_H

#include "csrc/collectives_trace.h"

typedef struct cc__trace cc__trace;

/* Room for so many events, or a few more: up to a power of two. NULL: no memory. */
cc__trace *cc__trace_open(uint32_t events);
void cc__trace_close(cc__trace *trace); /* NULL is fine */

/* One writer at a time. The event's number is not looked at. */
void cc__trace_add(cc__trace *trace, const cc_trace_event *event);

/* Any thread. As cc_trace_read; returns the count. */
uint32_t cc__trace_read(const cc__trace *trace, cc_trace_event *events, uint32_t capacity);
uint32_t cc__trace_capacity(const cc__trace *trace);

#endif
