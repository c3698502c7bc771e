/* The flight recorder: the last events, in a ring of fixed size that one writer at a time fills and
 * anybody copies out meanwhile.
 *
 * It has no lock. Each slot carries the number of its event, 0 while it is written; a reader that
 * does not find the same number before and after its copy was overtaken by the writer. An event is
 * one cache line and costs a few nanoseconds: it is written from registers, straight to its place,
 * and whoever records it says when it was, since it often knows. */
#ifndef CC_BASE_TRACE_H
#define CC_BASE_TRACE_H

#include "csrc/collectives_trace.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>

#define CC__TRACE_LINE 64
#define CC__TRACE_WORDS (CC__TRACE_LINE / sizeof(uint64_t))
#define CC__TRACE_AHEAD 4 /* events, about as many as an operation has */

typedef struct cc__trace_slot {
    alignas(CC__TRACE_LINE) _Atomic(uint64_t) words[CC__TRACE_WORDS]; /* the first is the number */
} cc__trace_slot;

typedef struct cc__trace {
    uint64_t capacity;
    _Atomic(uint64_t) last; /* the number of the last event that is complete */
    cc__trace_slot slots[];
} cc__trace;

/* Room for so many events, or a few more: up to a power of two. NULL: no memory. */
cc__trace *cc__trace_open(uint32_t events);
void cc__trace_close(cc__trace *trace); /* NULL is fine */

static inline cc__trace_slot *cc__trace_slot_of(cc__trace *trace, uint64_t number) {
    return &trace->slots[number & (trace->capacity - 1)];
}

static inline void cc__trace_put(cc__trace_slot *slot, int word, uint64_t value) {
    atomic_store_explicit(&slot->words[word], value, memory_order_release);
}

/* One writer at a time. The event's number is not looked at. */
static inline void cc__trace_add(cc__trace *trace, const cc_trace_event *event) {
    uint64_t number = atomic_load_explicit(&trace->last, memory_order_relaxed) + 1, peer;
    cc__trace_slot *slot = cc__trace_slot_of(trace, number);
    /* The ring is longer than a cache: a line is fetched before its turn, or the next lock, which
     * waits for all stores, waits for it. */
    __builtin_prefetch(cc__trace_slot_of(trace, number + CC__TRACE_AHEAD), 1);
    memcpy(&peer, event->peer, sizeof peer);
    atomic_store_explicit(&slot->words[0], 0, memory_order_relaxed);
    /* Released each: who reads one of these finds the 0, or something later, behind it. */
    cc__trace_put(slot, 1, (uint64_t)event->time_ns);
    cc__trace_put(slot, 2, event->epoch);
    cc__trace_put(slot, 3, event->sequence);
    cc__trace_put(slot, 4, event->value);
    cc__trace_put(slot, 5, event->more);
    cc__trace_put(slot, 6, peer);
    cc__trace_put(slot, 7,
                  (uint64_t)event->group << 32 | (uint64_t)event->kind << 24 |
                      (uint64_t)event->lane << 16 | (uint64_t)event->what << 8 | event->code);
    cc__trace_put(slot, 0, number);
    atomic_store_explicit(&trace->last, number, memory_order_release);
}

/* Any thread. As cc_trace_read; returns the count. */
uint32_t cc__trace_read(const cc__trace *trace, cc_trace_event *events, uint32_t capacity);

#endif
