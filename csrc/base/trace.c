#include "csrc/base/trace.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LINE 64
#define WORDS (LINE / sizeof(uint64_t)) /* the first is the number */

_Static_assert(sizeof(cc_trace_event) == LINE, "an event is a cache line");
_Static_assert(offsetof(cc_trace_event, number) == 0, "the number comes first");

typedef struct slot {
    alignas(LINE) _Atomic(uint64_t) words[WORDS];
} slot;

struct cc__trace {
    uint64_t capacity;
    _Atomic(uint64_t) last; /* the number of the last event that is complete */
    slot slots[];
};

cc__trace *cc__trace_open(uint32_t events) {
    uint64_t capacity = 1;
    while (capacity < events) capacity *= 2;
    size_t bytes = sizeof(cc__trace) + capacity * sizeof(slot);
    cc__trace *trace = aligned_alloc(LINE, bytes);
    if (trace == NULL) return NULL;
    memset(trace, 0, bytes); /* touched now, so that no event waits for a page */
    trace->capacity = capacity;
    return trace;
}

void cc__trace_close(cc__trace *trace) {
    free(trace);
}

void cc__trace_add(cc__trace *trace, const cc_trace_event *event) {
    uint64_t number = atomic_load_explicit(&trace->last, memory_order_relaxed) + 1;
    slot *to = &trace->slots[number & (trace->capacity - 1)];
    uint64_t words[WORDS];
    memcpy(words, event, sizeof words);
    atomic_store_explicit(&to->words[0], 0, memory_order_relaxed);
    /* Released each: who reads one of these finds the 0, or something later, behind it. */
    for (size_t i = 1; i < WORDS; i++)
        atomic_store_explicit(&to->words[i], words[i], memory_order_release);
    atomic_store_explicit(&to->words[0], number, memory_order_release);
    atomic_store_explicit(&trace->last, number, memory_order_release);
}

/* False: the writer has overwritten the event, or does so right now. */
static bool copy(const cc__trace *trace, uint64_t number, cc_trace_event *out) {
    const slot *from = &trace->slots[number & (trace->capacity - 1)];
    uint64_t words[WORDS];
    for (size_t i = 0; i < WORDS; i++)
        words[i] = atomic_load_explicit(&from->words[i], memory_order_acquire);
    memcpy(out, words, sizeof words);
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

uint32_t cc__trace_capacity(const cc__trace *trace) {
    return (uint32_t)trace->capacity;
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
    case CC_TRACE_EVIDENCE: return "evidence";
    }
    return "unknown";
}
