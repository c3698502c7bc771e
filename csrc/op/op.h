/* One operation: its plan, carried out segment by segment. It knows its own buffers and which
 * segments are there; it does not know votes, epochs or who decides what became of it (group.c).
 *
 * The public cc_work is the same struct: the caller holds one reference, the group another as long
 * as the operation is open. All calls are made under the context's lock, except reading `complete`
 * (and, once that is set, `info`). */
#ifndef CC_OP_H
#define CC_OP_H

#include "csrc/link/link.h"
#include "csrc/op/buffer.h"
#include "csrc/op/pack.h"
#include "csrc/op/request.h"

#include <stdatomic.h>

typedef enum cc__segment {
    CC__MISSING = 0,
    CC__LANDING,      /* its payload is being read to where it is used at once */
    CC__LANDING_HELD, /* its payload is being read to the move's hold area */
    CC__HELD,         /* there, but what must come before is not */
    CC__COMPLETE,
} cc__segment;

typedef struct cc__move_state {
    uint64_t done;     /* receives and local moves: every byte below is complete; sends: how many
                           bytes are sent */
    uint64_t next;     /* sends: the first byte that was not handed to a stream */
    uint8_t *segments; /* receives: cc__segment of each */
    uint64_t n_segments;
    uint8_t *again; /* sends: nonzero for each segment that is to be sent once more; or NULL */
    uint64_t n_again, again_at; /* how many, and none before this one */
} cc__move_state;

#define CC__NO_RANK UINT32_MAX
#define CC__TRAFFIC_TO 1u
#define CC__TRAFFIC_FROM 2u

typedef cc_work cc__op;
struct cc__pair;

struct cc_work {
    /* what was asked for */
    cc_request request;
    uint64_t *counts; /* what the request's counts point to */
    uint64_t bytes;   /* of all its blocks */
    uint8_t byte;     /* what a barrier sends that has to hear of all */
    cc__pack pack;
    cc__signature signature;
    uint32_t group;
    uint64_t sequence;
    int64_t posted_ns, deadline_ns;
    uint32_t wishes;       /* CC_BOUNDARY: CC_WANT_* */
    struct cc__pair *pair; /* SEND, RECEIVE: with whom; NULL: with anyone */

    /* how it goes, from cc__op_start on */
    bool started, done;
    bool moved;            /* bytes of this attempt, in either direction */
    cc_status verdict;     /* other than CC_OK: an error that all members find at its start */
    uint32_t verdict_rank; /* CC_PEER_LOST: the rank without which it cannot be done, or
                              CC__NO_RANK: it was interrupted and must not begin again */
    int64_t begun_ns;      /* this attempt */
    uint64_t epoch;
    cc__frame_type carrier; /* of its data */
    cc__plan plan;
    cc__move_state *states;
    uint8_t *segments; /* all moves' */
    uint8_t *stage;
    cc__saved saved;
    uint32_t contributors, segment_bytes, element_bytes;
    uint32_t first_open; /* the first move that is not complete */
    bool more;           /* stopped for fairness: pump again soon */
    bool *clear;         /* by member: data may be sent to it */
    uint8_t *traffic;    /* by member: CC__TRAFFIC_* of the plan */

    /* the handle */
    void *context;
    uint32_t references;
    atomic_int complete;
    int *notify_fds; /* to be written to */
    uint32_t n_notify;
    cc_info info;
    cc__op *next_active, **active_link; /* the list that it is in, if any */
};

/* A byte of one of the operation's areas. */
static inline uint8_t *cc__op_at(const cc__op *op, cc__place place, uint64_t offset) {
    union {
        const void *from;
        uint8_t *to;
    } in = {op->request.in}; /* only ever read through */
    uint8_t *base = place.area == CC__IN    ? in.to
                    : place.area == CC__OUT ? (uint8_t *)op->request.out
                                            : op->stage;
    return base + place.offset + offset;
}

static inline bool cc__is_receive(const cc__move *move) {
    return move->kind == CC__PLACE || move->kind == CC__REDUCE;
}

/* How much of a message travels in one frame: a segment, or less of a message that would be too few
 * of them to be received, reduced and passed on at the same time. Both ends find the same. */
static inline uint64_t cc__op_step(const cc__op *op, const cc__move *move) {
    if (op->plan.eager) return move->bytes;
    uint64_t part = move->bytes / CC_PARTS_MIN / 64 * 64;
    if (part < CC_PART_BYTES_MIN) part = CC_PART_BYTES_MIN;
    return part < op->segment_bytes ? part : op->segment_bytes;
}

/* Copies the request. `pack` may be NULL; it becomes the operation's. NULL: no memory. */
cc__op *cc__op_new(const cc_request *request, cc__pack *pack, uint32_t group, uint64_t sequence);
void cc__op_unref(cc__op *op);

/* Builds the plan for `size` members; ranks[i] is the row of member i. CC_NO_MEMORY leaves the
 * operation not started. */
cc_status cc__op_start(cc__op *op, uint32_t size, uint32_t me, const uint32_t *ranks,
                       uint32_t world, uint32_t segment_bytes);

/* As cc__op_start, for a SEND or RECEIVE: one move, to or from member 0 of those that pump names. */
cc_status cc__op_start_message(cc__op *op, uint32_t segment_bytes);

/* An operation is in one list at most: at its head, at its end, or in none. */
void cc__op_enlist(cc__op **list, cc__op *op);
void cc__op_append(cc__op **list, cc__op *op);
void cc__op_delist(cc__op *op);

/* Whether a member has to hear that this operation was posted, by a frame of its own: it is a
 * neighbour in the plan, and no eager data tells it anyway. Neighbours in either direction, so that
 * two different calls meet even if neither plan sends anything. */
bool cc__op_announces_to(const cc__op *op, uint32_t member);
/* Bytes that this member's READY tells `rank` to send, and that it will send to it: compared by the
 * pair where nobody else knows them (an uneven ALL_TO_ALL), else 0. */
uint64_t cc__op_expects_from(const cc__op *op, uint32_t rank);
uint64_t cc__op_sends_to(const cc__op *op, uint32_t rank);

/* Where the payload of a frame goes. CC_PROTOCOL: the plan expects no such payload. *place NULL:
 * to the channel's scratch. */
cc_status cc__op_expect(cc__op *op, const cc__frame *frame, uint32_t from, void **place);
/* The payload of an expected frame is at `data`. */
void cc__op_take(cc__op *op, const cc__frame *frame, uint32_t from, const void *data);
/* Bytes of a send are sent. */
void cc__op_sent(cc__op *op, uint32_t move, uint32_t bytes);

/* A sum that changes whenever bytes of the operation have moved. */
uint64_t cc__op_progress(const cc__op *op);
/* Whether a member could go on with it now: it has data to send here, or to take from here. */
bool cc__op_waits_for(const cc__op *op, uint32_t member);

/* ---- after a link was mended (resume.c) ------------------------------------------------- */

/* What was under way from or to the member when the link broke counts for nothing. */
void cc__op_mended(cc__op *op, uint32_t member);
/* The first receive from a member, at or after `move`, that is not complete; n_moves: none. */
uint32_t cc__op_next_incomplete(const cc__op *op, uint32_t from, uint32_t move);
/* Bytes of the bitmap of a receive's segments, and the bitmap: 1 for those that are here. */
uint64_t cc__op_bitmap_bytes(const cc__op *op, uint32_t move);
void cc__op_bitmap(const cc__op *op, uint32_t move, uint8_t *out);
/* A member says what it has of what it is sent in `slot`. CC_PROTOCOL: that cannot be.
 * CC_UNSUPPORTED: what it is missing is not here any more. */
cc_status cc__op_resume(cc__op *op, uint32_t to, uint32_t slot, const uint8_t *bitmap,
                        uint64_t bytes);
/* It has said all; what it did not speak of it has. Returns whether anything is to be sent again:
 * then the operation is not done, and must be pumped. */
bool cc__op_resumed(cc__op *op, uint32_t to);

/* Does what can be done now: sends to members that are clear, uses what was held, local moves. Sets
 * `done` once nothing is left and no stream holds any of the operation's memory. */
void cc__op_pump(cc__op *op, cc__links *links, cc__link *const *members);

/* Streams give the operation's memory back; with `undo` the input is restored. */
void cc__op_abandon(cc__op *op, cc__links *links, bool undo);

/* Ends the attempt, with the input restored: the operation is as it was when it was posted. */
void cc__op_rewind(cc__op *op, cc__links *links);

/* Records what became of an operation or message. `peer` may be NULL. */
void cc__op_trace(const cc__op *op, cc__links *links, cc_trace_kind kind, uint32_t code,
                  const cc_peer_id *peer);

/* Bytes of an operation move, to or from that link's peer. */
static inline void cc__op_moved(cc__op *op, cc__links *links, const cc__link *link) {
    if (!op->moved) cc__op_trace(op, links, CC_TRACE_MOVED, 0, &link->id);
    op->moved = true;
}

/* Sets the outcome, frees all but the handle, tells who waits; drops the library's reference. */
void cc__op_finish(cc__op *op, cc_status status, const char *message);

#endif
