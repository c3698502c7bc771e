/* A group on this peer: its epoch, its lanes of operations, its seal and report.
 *
 * group.c is membership (install, seal, report, what links tell), lane.c the operations (post,
 * votes, commit). All calls are made under the context's lock; nothing blocks, nothing calls up:
 * what the context has to pass on is left in `finished`, `report_due`, `ready_due` and `dispatch`. */
#ifndef CC_GROUP_H
#define CC_GROUP_H

#include "csrc/agree/commit.h"
#include "csrc/group/dispatch.h"
#include "csrc/group/pair.h"
#include "csrc/group/straggler.h"

typedef enum cc__group_state {
    CC__GROUP_JOINING = 0, /* no epoch yet */
    CC__GROUP_ACTIVE,
    CC__GROUP_SEALED, /* frozen until the next record */
    CC__GROUP_ENDED,  /* evicted, lost or closed: see `end` */
} cc__group_state;

/* What a member has told of one operation, perhaps before this peer posted it. */
typedef struct cc__notice {
    uint64_t sequence; /* 0: nothing */
    cc__signature signature;
    uint64_t expects; /* READY: the bytes that it expects of this peer, where that matters */
    uint32_t wishes;
    bool ready, voted;
    bool asks; /* it wants to be told when this peer has posted it */
} cc__notice;

/* A member as one lane sees it. Allocated when the member is first heard of in the lane. */
typedef struct cc__seat {
    cc__notice notices[CC_NOTICES_MAX]; /* by sequence */
    cc__frame eager[CC_EAGER_SLOTS];    /* data that came before the post; sequence 0: empty */
    uint8_t *eager_bytes;               /* CC_EAGER_SLOTS * CC_EAGER_BYTES, when first needed */
} cc__seat;

/* Why operations failed that an epoch's record decided. */
typedef struct cc__reason {
    uint64_t upto; /* the last operation that it is the reason for */
    cc_cause cause;
    cc_peer_id lost;
    uint32_t lost_rank, size, min_size;
    char detail[CC_DETAIL_MAX];
} cc__reason;

typedef struct cc__lane {
    uint32_t index;
    uint64_t posted, done;
    uint64_t interrupted;               /* no operation above it was ever begun and not decided */
    cc_outcome outcome;                 /* of the last record */
    cc__reason reasons[CC_REASONS_MAX]; /* of operations that this peer may not have posted yet */
    uint32_t n_reasons;                 /* in the order of the records that raised `failed` */
    cc__reason interruption;            /* of the record that last raised `interrupted` */
    cc__tally tally;                    /* over the epoch's members */
    uint64_t *voted;                    /* its memory */
    cc__seat **seats;                   /* by member */
    cc__op *ops[CC_INFLIGHT_MAX];       /* open ones, by sequence */
    uint32_t n_open;
    cc__patience patience;
} cc__lane;

struct cc__group {
    uint32_t id;
    cc__links *links;
    cc__group_state state;
    cc_status end;
    char end_message[CC_MESSAGE_MAX];
    uint32_t joiners; /* that wait, as the coordinator says */

    /* the epoch */
    uint64_t epoch;
    cc__reason reason;
    cc_network network;
    uint32_t world, min_size, size, me;
    cc_member *members;
    uint32_t *ranks;
    cc__link **member_links;
    bool *installed; /* by member: it has installed this epoch */
    bool *gone;      /* by member: it said goodbye */
    uint32_t n_installed;

    cc__lane *lanes[CC_LANES_MAX];
    cc__op *active; /* started and not yet done */
    cc_report report;
    cc__dispatch dispatch;

    /* for the context */
    bool report_due, ready_due, stragglers_due;
    uint64_t finished; /* operations that completed */
    uint32_t n_open;
    int64_t deadline_ns; /* no operation's deadline is earlier */
    int64_t look_ns;     /* when to look for stragglers again */

    cc__pairs pairs;
};

/* Records an event of the group that happens now. `peer` may be NULL. */
static inline void cc__group_trace(const cc__group *group, cc_trace_kind kind, uint32_t code,
                                   uint64_t value, const cc_peer_id *peer) {
    cc_trace_event event = {.kind = (uint8_t)kind, .code = (uint8_t)code, .value = value};
    event.group = group->id;
    event.epoch = group->epoch;
    cc__links_trace(group->links, event, peer);
}

cc__group *cc__group_new(uint32_t id, cc__links *links);
void cc__group_free(cc__group *group);

/* As cc_install. */
cc_status cc__group_install(cc__group *group, const cc_epoch *record);
/* Ends the group: every open operation completes with `why`. */
void cc__group_end(cc__group *group, cc_status why, const char *message);
/* Freezes the epoch. `suspect` may be NULL; `detail` may be "". Does nothing unless active. */
void cc__group_seal(cc__group *group, cc_cause cause, const cc_peer_id *suspect,
                    cc_evidence_kind evidence, const char *detail);
/* Freezes the epoch because of an operation that members call differently: it counts as not done,
 * whatever it was, so that no decision can commit it. */
void cc__group_seal_mismatch(cc__group *group, cc__lane *lane, uint64_t sequence,
                             const char *detail);
bool cc__group_has(const cc__group *group, const cc__link *link);

/* What links tell; all are safe for links of peers that are no members. */
void cc__group_on_connected(cc__group *group, cc__link *link);
void cc__group_on_evidence(cc__group *group, cc__link *link, cc_evidence_kind evidence);
void cc__group_on_frame(cc__group *group, cc__link *link, const cc__frame *frame);
void cc__group_on_want(cc__group *group, cc__channel *channel);
void cc__group_on_payload(cc__group *group, cc__channel *channel);

/* Pumps what can go on; returns whether something stopped only for fairness. */
bool cc__group_pump(cc__group *group);
/* Seals if a deadline has passed; returns the next one. */
int64_t cc__group_tick(cc__group *group, int64_t now);

/* Posts. The request is valid in itself (csrc/api.c checked it); `pack` is NULL, or taken over if
 * CC_OK is returned. *out has one reference for the caller. CC_BUSY: a bound is reached, or a
 * boundary is open. */
cc_status cc__group_post(cc__group *group, const cc_request *request, cc__pack *pack, int64_t now,
                         cc__op **out, char *message);

/* ---- between group.c, lane.c and lane_data.c ---------------------------------------------- */

int64_t cc__group_member(const cc__group *group, const cc__link *link); /* -1: none */
cc__lane *cc__lane_get(cc__group *group, uint32_t index);               /* NULL: no memory */
/* The epoch's members are new: tallies, seats and slots start over at the record's outcome. */
cc_status cc__lane_renew(cc__group *group, cc__lane *lane);
void cc__lane_free_seats(cc__lane *lane, uint32_t size);
void cc__lane_free(cc__lane *lane, uint32_t size);
/* Applies the record's outcome to the operations that were open; in-place inputs are put back. */
void cc__lane_decide(cc__group *group, cc__lane *lane);
/* Keeps why the operations up to `upto` fail that no earlier record has decided. */
void cc__lane_keep_reason(cc__lane *lane, const cc__reason *reason, uint64_t upto);
/* Starts what was posted while no epoch was active. */
void cc__lane_resume(cc__group *group, cc__lane *lane);
/* A member has installed the epoch: tells it what it has missed. */
void cc__lane_greet(cc__group *group, cc__lane *lane, uint32_t member);
void cc__lane_on_vote(cc__group *group, uint32_t member, const cc__frame *frame);
void cc__lane_on_ready(cc__group *group, uint32_t member, const cc__frame *frame);
/* An operation has no more to do: the watermark rises, votes go out, what all voted for commits. */
void cc__lane_advance(cc__group *group, cc__lane *lane);

cc__op *cc__lane_op(const cc__lane *lane, uint64_t sequence); /* open, or NULL */
cc__seat *cc__lane_seat(cc__lane *lane, uint32_t member);     /* NULL: no memory */
const cc__notice *cc__lane_notice(const cc__lane *lane, uint32_t member, uint64_t sequence);
/* The lane that a member's frame is about; NULL if it cannot be, or is a mismatch. */
cc__lane *cc__lane_of_frame(cc__group *group, uint32_t member, const cc__frame *frame);
/* Whether a member's call is ours; if not, the epoch is sealed. */
bool cc__lane_same_call(cc__group *group, cc__lane *lane, uint32_t member, uint64_t sequence,
                        const cc__signature *theirs);
bool cc__lane_same_blocks(cc__group *group, cc__lane *lane, uint32_t member, uint64_t sequence,
                          uint64_t expects);
bool cc__lane_may_send(cc__group *group, cc__lane *lane, const cc__op *op, uint32_t member);
/* Says that this peer has posted an operation, if the member has to know. */
void cc__lane_send_ready(cc__group *group, const cc__op *op, uint32_t member);
void cc__lane_complete(cc__group *group, cc__lane *lane, cc__op *op, cc_status status,
                       const char *message);
/* Completes an operation that the last record says has failed. */
void cc__lane_fail_op(cc__group *group, cc__lane *lane, cc__op *op);

#endif
