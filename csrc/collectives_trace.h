/* collectives: the flight recorder. The part of the public interface (collectives.h) that tells what
 * a context did lately: its operations, and what happened to its groups and links. docs/trace.md. */
#ifndef COLLECTIVES_TRACE_H
#define COLLECTIVES_TRACE_H

#include "csrc/collectives.h"

/* What happened. In brackets what the event's fields mean, besides time, group and epoch, where that
 * is not said below. */
typedef enum cc_trace_kind {
    /* Of an operation: lane, sequence; what: its cc_kind; value: its bytes; more: when it was posted;
     * epoch: of its attempt, 0 before the first. MOVED and AGAIN also of a message. */
    CC_TRACE_POSTED = 1,
    CC_TRACE_MOVED, /* the first byte of an attempt was sent or came in [peer: to or from whom] */
    CC_TRACE_DONE,  /* all moves are complete, and this peer voted [code: a cc_algorithm] */
    CC_TRACE_AGAIN, /* an attempt was ended; it begins again [code: attempts, 255 for more] */
    CC_TRACE_ENDED, /* committed or failed [code: a cc_status] */
    /* Of a message, likewise, without lane and epoch; peer: the other end, if it is known. A
     * receive has no sequence before it is matched. */
    CC_TRACE_MESSAGE_POSTED,
    CC_TRACE_MESSAGE_ENDED, /* [code: a cc_status] */
    /* Of a group. */
    CC_TRACE_SEALED,      /* [code: a cc_cause; peer: the suspect, if any; value: the evidence] */
    CC_TRACE_REPORTED,    /* the report was taken, for the coordinator */
    CC_TRACE_INSTALLED,   /* an epoch [code: a cc_cause; value: members] */
    CC_TRACE_PEER_READY,  /* a member has installed this epoch too [peer] */
    CC_TRACE_BOUNDARY,    /* all have voted at a boundary [value: CC_WANT_* of them all] */
    CC_TRACE_PENDING,     /* joiners wait [value: how many] */
    CC_TRACE_GROUP_ENDED, /* for this peer: it was evicted, or closed it [code: a cc_status] */
    /* Of a link, without group and epoch; peer: to whom. */
    CC_TRACE_LINK_DIALLED, /* [value: 1: through another peer] */
    CC_TRACE_LINK_PROBED,  /* does anyone listen there? [value: likewise] */
    CC_TRACE_LINK_UP,
    CC_TRACE_LINK_BROKEN, /* its connections are gone, and may be made anew [code: a cc_status] */
    CC_TRACE_LINK_MENDED, /* they were, and nothing was lost */
    CC_TRACE_LINK_LOST,   /* or it could not be made [code: a cc_status; value: the evidence] */
    CC_TRACE_EVIDENCE,    /* more is known of a lost or silent peer [value: the evidence] */
} cc_trace_kind;

typedef struct cc_trace_event {
    uint64_t number; /* 1, 2, ...: a context's events in order */
    int64_t time_ns; /* of the context's clock; never goes back */
    uint64_t epoch, sequence;
    uint64_t value, more;
    uint8_t peer[8]; /* how the other peer's id begins; zeros: none */
    uint32_t group;
    uint8_t kind; /* a cc_trace_kind */
    uint8_t lane, what, code;
} cc_trace_event;

/* Copies the latest events, at most `capacity`, oldest first and without a gap, and sets *count. The
 * first one's number tells how many came before it. Takes no lock and waits for nobody: events go on
 * meanwhile, and a fast writer may leave fewer than there are. Any thread, also after
 * cc_context_close, until cc_context_free. */
void cc_trace_read(const cc_context *context, cc_trace_event *events, uint32_t capacity,
                   uint32_t *count);

/* How many events the context keeps: a power of two, or 0 if it was opened without. */
uint32_t cc_trace_capacity(const cc_context *context);

/* For people, such as "link broken". */
const char *cc_trace_name(cc_trace_kind kind);

#endif
