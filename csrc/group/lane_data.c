/* The data of a lane's operations, and how they are posted and started. docs/protocol.md section 4.
 *
 * A payload goes straight to where its operation's plan wants it; eager data that comes before its
 * operation is posted waits in one of a few slots. */
#include "csrc/group/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Eager data that came before its operation was posted; NULL if there is no room for it. */
static uint8_t *eager_slot(cc__group *group, cc__lane *lane, uint32_t member,
                           const cc__frame *frame) {
    cc__seat *seat = cc__lane_seat(lane, member);
    if (seat == NULL) return NULL;
    uint64_t slot = frame->sequence % CC_EAGER_SLOTS;
    bool credit = frame->sequence > lane->done && frame->sequence <= lane->done + CC_EAGER_SLOTS;
    if (!credit || seat->eager[slot].sequence > lane->done || frame->offset != 0) {
        cc__links_accuse(group->links, group->member_links[member]);
        return NULL;
    }
    if (seat->eager_bytes == NULL) seat->eager_bytes = malloc(CC_EAGER_SLOTS * CC_EAGER_BYTES);
    if (seat->eager_bytes == NULL) return NULL;
    return seat->eager_bytes + slot * CC_EAGER_BYTES;
}

void cc__group_on_want(cc__group *group, cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    int64_t member = cc__group_member(group, channel->link);
    if (member >= 0 && group->state != CC__GROUP_ENDED && cc__pair_is_frame(frame)) {
        cc__pair_on_want(group, (uint32_t)member, channel);
        return;
    }
    if (cc__dispatch_is_frame(frame)) {
        void *scratch = member >= 0 ? channel->scratch : NULL;
        cc__links_place(group->links, channel, scratch, NULL);
        return;
    }
    bool current = group->state == CC__GROUP_ACTIVE && frame->epoch == group->epoch;
    cc__lane *lane =
        member >= 0 && current ? cc__lane_of_frame(group, (uint32_t)member, frame) : NULL;
    void *place = NULL, *owner = NULL;
    if (lane && frame->sequence > lane->done) {
        cc__op *op = cc__lane_op(lane, frame->sequence);
        if (op && op->started) {
            if (cc__op_expect(op, frame, (uint32_t)member, &place) != CC_OK) {
                cc__links_accuse(group->links, channel->link);
                return;
            }
            owner = op;
            if (place == NULL) place = channel->scratch;
        } else if (frame->type == CC__EAGER) {
            place = eager_slot(group, lane, (uint32_t)member, frame);
            owner = lane;
        } else { /* bulk data that nobody was told to send */
            cc__links_accuse(group->links, channel->link);
        }
    }
    cc__links_place(group->links, channel, place, owner);
}

/* Uses what a member has sent of an operation before it was posted. False: it is another call. */
static bool take_early(cc__group *group, cc__lane *lane, cc__op *op, uint32_t member) {
    const cc__seat *seat = lane->seats[member];
    uint64_t slot = op->sequence % CC_EAGER_SLOTS;
    if (seat == NULL || seat->eager[slot].sequence != op->sequence) return true;
    const cc__frame *frame = &seat->eager[slot];
    if (!cc__lane_same_call(group, lane, member, op->sequence, &frame->signature)) return false;
    if (!op->started) return true;
    const uint8_t *data = seat->eager_bytes + slot * CC_EAGER_BYTES;
    void *place;
    if (cc__op_expect(op, frame, member, &place) != CC_OK) {
        cc__links_accuse(group->links, group->member_links[member]);
        return true;
    }
    if (place) memcpy(place, data, frame->length);
    cc__op_moved(op, group->links, group->member_links[member]);
    cc__op_take(op, frame, member, place ? place : data);
    op->more = true;
    return true;
}

void cc__group_on_payload(cc__group *group, cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    int64_t member = cc__group_member(group, channel->link);
    if (member >= 0 && group->state != CC__GROUP_ENDED && cc__pair_is_frame(frame)) {
        cc__pair_on_payload(group, (uint32_t)member, channel);
        return;
    }
    if (member >= 0 && cc__dispatch_is_frame(frame)) {
        cc__dispatch_on_payload(group, (uint32_t)member, channel);
        return;
    }
    cc__lane *lane = group->lanes[frame->lane];
    if (member < 0 || group->state != CC__GROUP_ACTIVE || lane == NULL ||
        frame->epoch != group->epoch)
        return;
    cc__op *op = cc__lane_op(lane, frame->sequence);
    if (channel->in_owner == lane) { /* an eager slot: whether or not it was posted meanwhile */
        channel->in_owner = NULL;
        lane->seats[member]->eager[frame->sequence % CC_EAGER_SLOTS] = *frame;
        if (op) take_early(group, lane, op, (uint32_t)member);
        return;
    }
    if (op == NULL || channel->in_owner != op) return;
    channel->in_owner = NULL;
    cc__op_moved(op, group->links, channel->link);
    cc__op_take(op, frame, (uint32_t)member, channel->place);
    op->more = true;
}

static uint32_t own_wishes(const cc__group *group, const cc_request *request) {
    uint32_t wishes = request->flags & CC_LEAVE ? CC_WANT_LEAVE : 0;
    bool holes = group->size != group->world || group->size < group->min_size;
    if (group->joiners > 0 || holes) wishes |= CC_WANT_JOIN;
    return wishes;
}

/* The first rank without a member that the operation cannot do without, or `world`. */
static uint32_t missing_rank(const cc__group *group, const cc_request *request) {
    unsigned traits = cc__kind_traits(request->kind);
    bool needs_all = (traits & CC__NEEDS_ALL) || (request->flags & CC_WHOLE);
    for (uint32_t rank = 0, i = 0; rank < group->world; rank++) {
        if (i < group->size && group->ranks[i] == rank) {
            i++;
            continue;
        }
        bool is_root = (traits & CC__HAS_ROOT) && rank == request->root;
        if (is_root || needs_all) return rank;
    }
    return group->world;
}

/* Errors that all members find alike. */
static cc_status find_verdict(const cc__group *group, const cc__lane *lane, cc__op *op) {
    if (group->size < group->min_size) return CC_GROUP_TOO_SMALL;
    op->verdict_rank = missing_rank(group, &op->request);
    if (op->verdict_rank < group->world) return CC_PEER_LOST;
    op->verdict_rank = CC__NO_RANK;
    bool is_final = op->signature.flags & CC__FINAL;
    return is_final && op->sequence <= lane->interrupted ? CC_PEER_LOST : CC_OK;
}

static void choose_algorithm(const cc__group *group, cc__op *op) {
    if (op->signature.algorithm != CC_AUTO) return;
    bool unknown = op->request.kind == CC_ALL_TO_ALL && op->request.counts;
    uint64_t total = unknown ? 0 : cc__request_total(&op->request, false);
    op->signature.algorithm = (uint8_t)cc__plan_choose(&group->network, op->request.kind,
                                                       group->size, total * op->element_bytes);
}

/* Whether a member has posted another call, or one whose blocks do not fit ours. */
static bool fits_notices(cc__group *group, cc__lane *lane, const cc__op *op) {
    for (uint32_t i = 0; i < group->size; i++) {
        const cc__notice *notice = i == group->me ? NULL : cc__lane_notice(lane, i, op->sequence);
        if (notice == NULL) continue;
        if (!cc__lane_same_call(group, lane, i, op->sequence, &notice->signature)) return false;
        if (notice->ready && !cc__lane_same_blocks(group, lane, i, op->sequence, notice->expects))
            return false;
    }
    return true;
}

static void start(cc__group *group, cc__lane *lane, cc__op *op) {
    uint32_t size = group->size;
    op->epoch = group->epoch;
    op->begun_ns = cc__now(&group->links->clock);
    if (op->request.kind == CC_BOUNDARY)
        op->wishes = own_wishes(group, &op->request);
    else
        op->verdict = find_verdict(group, lane, op);
    choose_algorithm(group, op);
    if (!fits_notices(group, lane, op)) return;
    if (op->verdict != CC_OK) {
        op->done = true; /* nothing moves; it takes its number and its votes like any other */
        cc__lane_advance(group, lane);
        return;
    }
    cc_status status =
        cc__op_start(op, size, group->me, group->ranks, group->world, group->links->segment_bytes);
    if (status != CC_OK) { /* this peer cannot go on; what becomes of it is decided for all */
        cc__group_seal(group, CC_CAUSE_DEADLINE, NULL, 0, "a peer ran out of memory");
        return;
    }
    cc__op_append(&group->active, op);
    for (uint32_t i = 0; i < size; i++) {
        if (i == group->me) continue;
        cc__lane_send_ready(group, op, i);
        op->clear[i] = cc__lane_may_send(group, lane, op, i);
    }
    for (uint32_t i = 0; i < size; i++)
        if (!take_early(group, lane, op, i)) return;
    op->more = true;
}

void cc__lane_resume(cc__group *group, cc__lane *lane) {
    for (uint64_t sequence = lane->outcome.failed + 1; sequence <= lane->posted; sequence++) {
        cc__op *op = cc__lane_op(lane, sequence);
        if (op && !op->started && group->state == CC__GROUP_ACTIVE) start(group, lane, op);
    }
}

static bool boundary_open(const cc__group *group) {
    const cc__lane *lane = group->lanes[0];
    const cc__op *op = lane && lane->n_open ? cc__lane_op(lane, lane->posted) : NULL;
    return op && op->request.kind == CC_BOUNDARY;
}

static cc_status may_post(const cc__group *group, const cc_request *request, const cc__lane *lane,
                          char *message) {
    const char *why = NULL;
    if (boundary_open(group))
        why = "an admit() or leave() is under way: no other operation may be posted meanwhile";
    else if (request->kind == CC_BOUNDARY && group->n_open > 0)
        why = "operations are open: wait for them before admit() or leave()";
    else if (lane->n_open == CC_INFLIGHT_MAX)
        why = "too many operations are open in this lane: wait for one";
    if (why == NULL) return CC_OK;
    snprintf(message, CC_MESSAGE_MAX, "%s", why);
    return CC_BUSY;
}

/* What is wrong with the request's ranks or buffers in this group, if anything. */
static cc_status check_for_group(const cc__group *group, const cc_request *request,
                                 const cc__pack *pack, char *message) {
    unsigned traits = cc__kind_traits(request->kind);
    uint32_t rank = group->ranks[group->me];
    const char *why = NULL;
    if ((traits & CC__BLOCKS) && request->world != group->world) {
        snprintf(message, CC_MESSAGE_MAX, "the buffers have blocks for %u ranks and this group %u",
                 request->world, group->world);
        return CC_INVALID;
    }
    if ((traits & CC__HAS_ROOT) && request->root >= group->world) {
        snprintf(message, CC_MESSAGE_MAX, "root %u is no rank of this group of %u", request->root,
                 group->world);
        return CC_INVALID;
    }
    if (request->in == NULL && cc__request_in_bytes(request, rank) > 0)
        why = "the input buffer is missing";
    else if (request->out == NULL && cc__request_out_bytes(request, rank) > 0)
        why = "the output buffer is missing";
    else if (!pack && cc__request_overlaps(request, rank) && !cc__request_in_place(request, rank))
        why = "input and output overlap; only out=input is allowed, or a block in its own place";
    if (why == NULL) return CC_OK;
    snprintf(message, CC_MESSAGE_MAX, "%s", why);
    return CC_INVALID;
}

cc_status cc__group_post(cc__group *group, const cc_request *request, cc__pack *pack, int64_t now,
                         cc__op **out, char *message) {
    if (group->state == CC__GROUP_ENDED) {
        snprintf(message, CC_MESSAGE_MAX, "%s", group->end_message);
        return group->end;
    }
    if (group->state == CC__GROUP_JOINING) {
        snprintf(message, CC_MESSAGE_MAX, "this peer is no member of the group yet");
        return CC_INVALID;
    }
    if (cc__kind_traits(request->kind) & CC__PAIRWISE)
        return cc__pair_post(group, request, now, out, message);
    cc_status status = check_for_group(group, request, pack, message);
    if (status != CC_OK) return status;
    cc__lane *lane = cc__lane_get(group, request->lane);
    if (lane == NULL) return CC_NO_MEMORY;
    status = may_post(group, request, lane, message);
    if (status != CC_OK) return status;
    cc__op *op = cc__op_new(request, pack, group->id, lane->posted + 1);
    if (op == NULL) return CC_NO_MEMORY;
    if (request->timeout_ms >= 0 && request->timeout_ms < (INT64_MAX - now) / CC__MS)
        op->deadline_ns = now + request->timeout_ms * CC__MS;
    if (op->deadline_ns < group->deadline_ns) group->deadline_ns = op->deadline_ns;
    op->posted_ns = group->links->now_ns = now;
    cc__op_trace(op, group->links, CC_TRACE_POSTED, 0, NULL);
    lane->posted++;
    lane->ops[op->sequence % CC_INFLIGHT_MAX] = op;
    lane->n_open++;
    group->n_open++;
    *out = op;
    if (op->sequence <= lane->outcome.failed) {
        cc__lane_fail_op(group, lane, op);
        return CC_OK;
    }
    if (group->state != CC__GROUP_ACTIVE) return CC_OK;
    start(group, lane, op);
    for (uint32_t i = 0; i < group->size; i++)
        if (group->gone[i])
            cc__group_seal(group, CC_CAUSE_LOST, &group->members[i].id, CC_EVIDENCE_GOODBYE, "");
    return CC_OK;
}
