#include "csrc/base/trace.h"

#include <stdbool.h>
#include <stdlib.h>

cc__trace *cc__trace_open(uint32_t events) {
    uint64_t capacity = 1;
    while (capacity < events) capacity *= 2;
    size_t bytes = sizeof(cc__trace) + capacity * sizeof(cc__trace_slot);
    cc__trace *trace = aligned_alloc(CC__TRACE_LINE, bytes);
    if (trace == NULL) return NULL;
    memset(trace, 0, bytes); /* touched now, so that no event waits for a page */
    trace->capacity = capacity;
    return trace;
}

void cc__trace_close(cc__trace *trace) {
    free(trace);
}

/* False: the writer has overwritten the event, or does so right now. */
static bool copy(const cc__trace *trace, uint64_t number, cc_trace_event *out) {
    const cc__trace_slot *from = &trace->slots[number & (trace->capacity - 1)];
    uint64_t words[CC__TRACE_WORDS];
    for (size_t i = 0; i < CC__TRACE_WORDS; i++)
        words[i] = atomic_load_explicit(&from->words[i], memory_order_acquire);
    *out = (cc_trace_event){
        .number = words[0],
        .time_ns = (int64_t)words[1],
        .epoch = words[2],
        .sequence = words[3],
        .value = words[4],
        .more = words[5],
        .group = (uint32_t)(words[7] >> 32),
        .kind = (uint8_t)(words[7] >> 24),
        .lane = (uint8_t)(words[7] >> 16),
        .what = (uint8_t)(words[7] >> 8),
        .code = (uint8_t)words[7],
    };
    memcpy(out->peer, &words[6], sizeof out->peer);
    return words[0] == number &&
           atomic_load_explicit(&from->words[0], memory_order_relaxed) == number;
}

uint32_t cc__trace_read(const cc__trace *trace, cc_trace_event *events, uint32_t capacity) {
    uint64_t last = atomic_load_explicit(&trace->last, memory_order_acquire);
    uint64_t most = capacity < trace->capacity ? capacity : trace->capacity;
    uint32_t count = 0;
    for (uint64_t number = last > most ? last - most + 1 : 1; number <= last; number++) {
        if (copy(trace, number, &events[count]))
            count++;
        else
            count = 0; /* what came before would be followed by a gap */
    }
    return count;
}

const char *cc_trace_name(cc_trace_kind kind) {
    switch (kind) {
    case CC_TRACE_POSTED: return "posted";
    case CC_TRACE_MOVED: return "moved";
    case CC_TRACE_DONE: return "done";
    case CC_TRACE_AGAIN: return "begun again";
    case CC_TRACE_ENDED: return "ended";
    case CC_TRACE_MESSAGE_POSTED: return "message posted";
    case CC_TRACE_MESSAGE_ENDED: return "message ended";
    case CC_TRACE_SEALED: return "sealed";
    case CC_TRACE_REPORTED: return "reported";
    case CC_TRACE_INSTALLED: return "epoch installed";
    case CC_TRACE_PEER_READY: return "peer ready";
    case CC_TRACE_BOUNDARY: return "boundary";
    case CC_TRACE_PENDING: return "joiners waiting";
    case CC_TRACE_GROUP_ENDED: return "group ended";
    case CC_TRACE_LINK_DIALLED: return "link dialled";
    case CC_TRACE_LINK_PROBED: return "link probed";
    case CC_TRACE_LINK_UP: return "link up";
    case CC_TRACE_LINK_BROKEN: return "link broken";
    case CC_TRACE_LINK_MENDED: return "link mended";
    case CC_TRACE_LINK_LOST: return "link lost";
    case CC_TRACE_EVIDENCE: return "evidence";
    }
    return "unknown";
}
