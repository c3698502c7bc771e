/* The public entry points of the flight recorder. No lock is taken: a context's ring is there from
 * its opening to its end. */
#include "csrc/group/context.h"

void cc_trace_read(const cc_context *context, cc_trace_event *events, uint32_t capacity,
                   uint32_t *count) {
    *count = context->links.trace ? cc__trace_read(context->links.trace, events, capacity) : 0;
}

uint32_t cc_trace_capacity(const cc_context *context) {
    return context->links.trace ? (uint32_t)context->links.trace->capacity : 0;
}
