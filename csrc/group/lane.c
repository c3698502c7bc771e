/* The operations of one lane: posting, readiness, votes, commit. docs/protocol.md sections 4, 5.
 *
 * A lane moves three watermarks: posted, done (all moves complete, voted) and committed (voted by
 * all). They only rise, and operations complete in order. */
#include "csrc/group/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

cc__op *cc__lane_op(const cc__lane *lane, uint64_t sequence) {
    cc__op *op = lane->ops[sequence % CC_INFLIGHT_MAX];
    return op && op->sequence == sequence ? op : NULL;
}

cc__lane *cc__lane_get(cc__group *group, uint32_t index) {
    if (group->lanes[index]) return group->lanes[index];
    cc__lane *lane = calloc(1, sizeof *lane);
    if (lane == NULL) return NULL;
    lane->index = index;
    lane->outcome.lane = index;
    if (cc__lane_renew(group, lane) != CC_OK) {
        free(lane);
        return NULL;
    }
    group->lanes[index] = lane;
    return lane;
}

void cc__lane_free_seats(cc__lane *lane, uint32_t size) {
    for (uint32_t i = 0; lane->seats && i < size; i++) {
        if (lane->seats[i]) free(lane->seats[i]->eager_bytes);
        free(lane->seats[i]);
    }
    free(lane->seats);
    free(lane->voted);
    lane->seats = NULL;
    lane->voted = NULL;
}

void cc__lane_free(cc__lane *lane, uint32_t size) {
    cc__lane_free_seats(lane, size);
    free(lane);
}

cc_status cc__lane_renew(cc__group *group, cc__lane *lane) {
    lane->voted = calloc(group->size + 1u, sizeof *lane->voted);
    lane->seats = calloc(group->size + 1u, sizeof *lane->seats);
    if (lane->voted == NULL || lane->seats == NULL) {
        cc__lane_free_seats(lane, 0);
        return CC_NO_MEMORY;
    }
    lane->done = lane->outcome.failed;
    lane->patience = (cc__patience){0};
    cc__tally_start(&lane->tally, lane->voted, group->size, lane->outcome.failed);
    return CC_OK;
}

cc__seat *cc__lane_seat(cc__lane *lane, uint32_t member) {
    if (lane->seats[member] == NULL) lane->seats[member] = calloc(1, sizeof(cc__seat));
    return lane->seats[member];
}

static cc__notice *notice_of(cc__lane *lane, uint32_t member, uint64_t sequence) {
    cc__seat *seat = cc__lane_seat(lane, member);
    if (seat == NULL) return NULL;
    cc__notice *notice = &seat->notices[sequence % CC_NOTICES_MAX];
    if (notice->sequence != sequence) *notice = (cc__notice){.sequence = sequence};
    return notice;
}

const cc__notice *cc__lane_notice(const cc__lane *lane, uint32_t member, uint64_t sequence) {
    const cc__seat *seat = lane->seats[member];
    if (seat == NULL) return NULL;
    const cc__notice *notice = &seat->notices[sequence % CC_NOTICES_MAX];
    return notice->sequence == sequence ? notice : NULL;
}

/* ---- completion --------------------------------------------------------------------------- */

void cc__lane_complete(cc__group *group, cc__lane *lane, cc__op *op, cc_status status,
                       const char *message) {
    cc__op_delist(op);
    if (op->started && !op->done) cc__links_release(group->links, op); /* what is sent once more */
    lane->ops[op->sequence % CC_INFLIGHT_MAX] = NULL;
    lane->n_open--;
    group->n_open--;
    group->finished++;
    cc__op_trace(op, group->links, CC_TRACE_ENDED, status, NULL);
    cc__op_finish(op, status, message);
}

static const char *input_of(const cc__op *op) {
    bool reduces = cc__kind_traits(op->request.kind) & CC__HAS_OP;
    bool kept = !reduces || (op->request.flags & CC_PRESERVE);
    return kept ? "its input is intact" : "its input is intact unless it was in place";
}

/* Why an operation failed that the last record says has failed. */
static cc_status failure(const cc__reason *reason, const cc__op *op, char *message) {
    char what[160];
    cc__signature_text(&op->signature, what, sizeof what);
    unsigned long long number = (unsigned long long)op->sequence;
    if (reason->cause == CC_CAUSE_RECOVERED) {
        snprintf(message, CC_MESSAGE_MAX,
                 "%s, operation %llu: the coordinator lost what it had decided, and with it what "
                 "became of this; %s",
                 what, number, input_of(op));
        return CC_OUTCOME_UNKNOWN;
    }
    if (reason->size < reason->min_size) {
        snprintf(message, CC_MESSAGE_MAX,
                 "%s, operation %llu: only %u members are left and the group needs %u; %s; admit() "
                 "waits for new members",
                 what, number, reason->size, reason->min_size, input_of(op));
        return CC_GROUP_TOO_SMALL;
    }
    switch (reason->cause) {
    case CC_CAUSE_MISMATCH:
        snprintf(message, CC_MESSAGE_MAX, "peers called different operations: %s", reason->detail);
        return CC_MISMATCH;
    case CC_CAUSE_DEADLINE:
        snprintf(message, CC_MESSAGE_MAX, "%.100s, operation %llu: %.200s", what, number,
                 reason->detail);
        return CC_TIMED_OUT;
    case CC_CAUSE_LINK:
        snprintf(message, CC_MESSAGE_MAX,
                 "%s, operation %llu: a connection between two peers broke and both live on; %s; "
                 "call it again",
                 what, number, input_of(op));
        return CC_PEER_LOST;
    default:
        if (op->request.flags & CC_WHOLE) {
            snprintf(message, CC_MESSAGE_MAX,
                     "%s, operation %llu: rank %u was lost, and the call is for all ranks or none; "
                     "%s",
                     what, number, reason->lost_rank, input_of(op));
            return CC_PEER_LOST;
        }
        snprintf(message, CC_MESSAGE_MAX,
                 "%s, operation %llu: the peer of rank %u was lost; %s; the next call runs among "
                 "the %u survivors",
                 what, number, reason->lost_rank, input_of(op), reason->size);
        return CC_PEER_LOST;
    }
}

/* Who is late to post learns why a number failed from the record that decided it, not from a later
 * one. Reasons of what is posted have been told. With more than there is room for the oldest goes,
 * and its numbers get the next one's. */
void cc__lane_keep_reason(cc__lane *lane, const cc__reason *reason, uint64_t upto) {
    uint32_t past = lane->n_reasons == CC_REASONS_MAX;
    while (past < lane->n_reasons && lane->reasons[past].upto <= lane->posted) past++;
    lane->n_reasons -= past;
    memmove(lane->reasons, lane->reasons + past, lane->n_reasons * sizeof *reason);
    lane->reasons[lane->n_reasons] = *reason;
    lane->reasons[lane->n_reasons++].upto = upto;
}

void cc__lane_fail_op(cc__group *group, cc__lane *lane, cc__op *op) {
    char message[CC_MESSAGE_MAX];
    const cc__reason *reason = lane->reasons;
    while (reason->upto < op->sequence) reason++;
    cc_status status = failure(reason, op, message);
    op->info.lost = reason->lost;
    op->info.lost_rank = reason->lost_rank;
    cc__lane_complete(group, lane, op, status, message);
}

/* It cannot be without a rank that has no member. */
static void explain_missing(const cc__op *op, char *message) {
    char what[160];
    cc__signature_text(&op->signature, what, sizeof what);
    bool is_root =
        (cc__kind_traits(op->request.kind) & CC__HAS_ROOT) && op->verdict_rank == op->request.root;
    const char *why = ", which has a part in it, was lost; admit() closes the hole";
    if (op->request.flags & CC_WHOLE)
        why = " was lost, and the call is for all ranks or none";
    else if (is_root)
        why = ", its root, was lost; choose another root";
    snprintf(message, CC_MESSAGE_MAX, "%s, operation %llu: rank %u%s", what,
             (unsigned long long)op->sequence, op->verdict_rank, why);
}

/* All members have voted for it: its result, or the error that all of them found at its start. */
static void succeed(cc__group *group, cc__lane *lane, cc__op *op) {
    char message[CC_MESSAGE_MAX] = "";
    if (op->verdict == CC_GROUP_TOO_SMALL) {
        failure(&group->reason, op, message);
    } else if (op->verdict == CC_PEER_LOST && op->verdict_rank == CC__NO_RANK) {
        failure(&lane->interruption, op, message);
        op->info.lost = lane->interruption.lost;
        op->info.lost_rank = lane->interruption.lost_rank;
    } else if (op->verdict == CC_PEER_LOST) {
        op->info.lost_rank = op->verdict_rank;
        explain_missing(op, message);
    }
    cc__lane_complete(group, lane, op, op->verdict, message);
}

static void decide_committed(cc__group *group, cc__lane *lane, cc__op *op) {
    if (op->sequence > lane->done) { /* no right coordinator says so: it was not reported as done */
        cc__op_abandon(op, group->links, true);
        cc__lane_complete(group, lane, op, CC_OUTCOME_UNKNOWN,
                          "the coordinator committed an operation that this peer has not done");
        return;
    }
    op->info.changed = op->request.kind == CC_BOUNDARY && group->reason.cause == CC_CAUSE_BOUNDARY;
    succeed(group, lane, op);
}

void cc__lane_decide(cc__group *group, cc__lane *lane) {
    uint64_t first = lane->posted > CC_INFLIGHT_MAX ? lane->posted - CC_INFLIGHT_MAX + 1 : 1;
    for (uint64_t sequence = first; sequence <= lane->posted; sequence++) {
        cc__op *op = cc__lane_op(lane, sequence);
        if (op == NULL) continue;
        switch (cc__fate_of(sequence, &lane->outcome)) {
        case CC__FATE_COMMITTED: decide_committed(group, lane, op); break;
        case CC__FATE_FAILED:
            cc__op_abandon(op, group->links, true);
            cc__lane_fail_op(group, lane, op);
            break;
        case CC__FATE_GOES_ON: cc__op_rewind(op, group->links); break;
        }
    }
}

/* ---- votes -------------------------------------------------------------------------------- */

static void send_vote(cc__group *group, const cc__op *op, uint32_t member) {
    cc__frame frame = {
        .type = CC__VOTE,
        .lane = (uint8_t)op->request.lane,
        .group = group->id,
        .epoch = group->epoch,
        .sequence = op->sequence,
        .offset = op->wishes,
        .signature = op->signature,
    };
    cc__links_send(group->links, group->member_links[member], &frame, NULL);
}

/* The wishes of all members for a boundary that all have voted for. */
static uint32_t all_wishes(const cc__group *group, const cc__lane *lane, const cc__op *op) {
    uint32_t wishes = op->wishes;
    for (uint32_t i = 0; i < group->size; i++) {
        const cc__notice *notice = i == group->me ? NULL : cc__lane_notice(lane, i, op->sequence);
        if (notice) wishes |= notice->wishes;
    }
    return wishes;
}

static void commit(cc__group *group, cc__lane *lane, uint64_t from) {
    for (uint64_t sequence = from + 1; sequence <= lane->tally.committed; sequence++) {
        cc__op *op = cc__lane_op(lane, sequence);
        if (op == NULL) continue;
        bool is_boundary = op->request.kind == CC_BOUNDARY;
        uint32_t wishes = is_boundary ? all_wishes(group, lane, op) : 0;
        if (is_boundary) cc__group_trace(group, CC_TRACE_BOUNDARY, 0, wishes, NULL);
        if (wishes) {
            cc__group_seal(group, CC_CAUSE_BOUNDARY, NULL, 0, "");
            return; /* it completes with the record; nothing comes after it */
        }
        succeed(group, lane, op);
    }
}

static void tally(cc__group *group, cc__lane *lane, uint32_t member, uint64_t watermark) {
    uint64_t before = lane->tally.committed;
    if (cc__tally_vote(&lane->tally, member, watermark)) commit(group, lane, before);
}

void cc__lane_advance(cc__group *group, cc__lane *lane) {
    if (group->state != CC__GROUP_ACTIVE) return;
    uint64_t before = lane->done;
    for (cc__op *op = cc__lane_op(lane, lane->done + 1); op && op->done;
         op = cc__lane_op(lane, lane->done + 1)) {
        lane->done++;
        for (uint32_t i = 0; i < group->size; i++)
            if (i != group->me && group->installed[i]) send_vote(group, op, i);
        cc__op_trace(op, group->links, CC_TRACE_DONE, op->signature.algorithm, NULL);
    }
    if (lane->done > before) tally(group, lane, group->me, lane->done);
}

/* ---- what other members say --------------------------------------------------------------- */

/* Seals if a member calls another operation by the same number. */
bool cc__lane_same_call(cc__group *group, cc__lane *lane, uint32_t member, uint64_t sequence,
                        const cc__signature *theirs) {
    const cc__op *op = cc__lane_op(lane, sequence);
    if (op == NULL || cc__signature_equal(&op->signature, theirs)) return true;
    char mine[96], other[96], detail[CC_DETAIL_MAX];
    cc__signature_text(&op->signature, mine, sizeof mine);
    cc__signature_text(theirs, other, sizeof other);
    snprintf(detail, sizeof detail, "as number %llu rank %u called %s, rank %u %s",
             (unsigned long long)sequence, group->ranks[group->me], mine, group->ranks[member],
             other);
    cc__group_seal_mismatch(group, lane, sequence, detail);
    return false;
}

/* Seals if a member expects another length of us than we send it. */
bool cc__lane_same_blocks(cc__group *group, cc__lane *lane, uint32_t member, uint64_t sequence,
                          uint64_t expects) {
    const cc__op *op = cc__lane_op(lane, sequence);
    if (op == NULL) return true;
    uint32_t rank = group->ranks[member];
    uint64_t sends = cc__op_sends_to(op, rank);
    if (sends == expects) return true;
    char detail[CC_DETAIL_MAX];
    snprintf(detail, sizeof detail,
             "in all_to_all number %llu rank %u sends %llu bytes to rank %u, which expects %llu",
             (unsigned long long)sequence, group->ranks[group->me], (unsigned long long)sends, rank,
             (unsigned long long)expects);
    cc__group_seal_mismatch(group, lane, sequence, detail);
    return false;
}

/* Whether bulk or eager data of an operation may go to a member. */
bool cc__lane_may_send(cc__group *group, cc__lane *lane, const cc__op *op, uint32_t member) {
    if (member == group->me || !group->installed[member]) return false;
    const cc__notice *notice = cc__lane_notice(lane, member, op->sequence);
    if (notice && (notice->ready || notice->voted)) return true;
    return op->plan.eager && op->sequence <= lane->tally.voted[member] + CC_EAGER_SLOTS;
}

static void update_clear(cc__group *group, cc__lane *lane, uint32_t member) {
    for (cc__op *op = group->active; op; op = op->next_active) {
        if (op->request.lane != lane->index || op->clear[member]) continue;
        op->clear[member] = cc__lane_may_send(group, lane, op, member);
        if (op->clear[member]) op->more = true;
    }
}

/* A frame about `sequence` from a member: NULL if it cannot be, or was a mismatch. */
cc__lane *cc__lane_of_frame(cc__group *group, uint32_t member, const cc__frame *frame) {
    cc__lane *lane = cc__lane_get(group, frame->lane);
    if (lane == NULL) return NULL;
    bool possible =
        frame->sequence > 0 && frame->sequence <= lane->tally.committed + CC_NOTICES_MAX;
    if (!possible) {
        cc__links_accuse(group->links, group->member_links[member]);
        return NULL;
    }
    return cc__lane_same_call(group, lane, member, frame->sequence, &frame->signature) ? lane
                                                                                       : NULL;
}

void cc__lane_on_vote(cc__group *group, uint32_t member, const cc__frame *frame) {
    cc__lane *lane = cc__lane_of_frame(group, member, frame);
    if (lane == NULL || frame->sequence <= lane->tally.committed) return;
    cc__notice *notice = notice_of(lane, member, frame->sequence);
    if (notice == NULL) return;
    notice->voted = true;
    notice->signature = frame->signature;
    notice->wishes = (uint32_t)frame->offset;
    tally(group, lane, member, frame->sequence);
    if (group->state == CC__GROUP_ACTIVE) update_clear(group, lane, member);
}

void cc__lane_on_ready(cc__group *group, uint32_t member, const cc__frame *frame) {
    cc__lane *lane = cc__lane_of_frame(group, member, frame);
    if (lane == NULL || frame->sequence <= lane->tally.committed) return;
    if (!cc__lane_same_blocks(group, lane, member, frame->sequence, frame->offset)) return;
    cc__notice *notice = notice_of(lane, member, frame->sequence);
    if (notice == NULL) return;
    notice->ready = true;
    notice->asks = frame->slot == CC__READY_ASKS;
    notice->expects = frame->offset;
    notice->signature = frame->signature;
    update_clear(group, lane, member);
    const cc__op *op = notice->asks ? cc__lane_op(lane, frame->sequence) : NULL;
    if (op && op->epoch == group->epoch && !cc__stragglers_asked(lane, op)) /* else it knows */
        cc__lane_send_ready(group, op, member);
}

void cc__lane_send_ready(cc__group *group, const cc__op *op, uint32_t member) {
    const cc__lane *lane = group->lanes[op->request.lane];
    const cc__notice *notice = cc__lane_notice(lane, member, op->sequence);
    bool asks = cc__stragglers_asked(lane, op), asked = notice && notice->asks;
    bool wanted = asks || asked || (op->started && cc__op_announces_to(op, member));
    if (!group->installed[member] || !wanted) return;
    cc__frame frame = {
        .type = CC__READY,
        .lane = (uint8_t)op->request.lane,
        .slot = asks ? CC__READY_ASKS : 0,
        .group = group->id,
        .epoch = group->epoch,
        .sequence = op->sequence,
        .offset = cc__op_expects_from(op, group->ranks[member]),
        .signature = op->signature,
    };
    cc__links_send(group->links, group->member_links[member], &frame, NULL);
}

void cc__lane_greet(cc__group *group, cc__lane *lane, uint32_t member) {
    for (uint64_t sequence = lane->tally.committed + 1; sequence <= lane->posted; sequence++) {
        const cc__op *op = cc__lane_op(lane, sequence);
        if (op == NULL) continue;
        if (op->started) cc__lane_send_ready(group, op, member);
        if (sequence <= lane->done) send_vote(group, op, member);
    }
    update_clear(group, lane, member);
}
