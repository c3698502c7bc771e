/* How messages are posted: what is wrong with them, and where they go first. */
#include "csrc/group/pair_internal.h"

#include <stdio.h>

static cc_status check(const cc__group *group, const cc_request *request, char *message) {
    bool sends = request->kind == CC_SEND, any = !sends && request->root == CC_ANY_SOURCE;
    const char *why = NULL;
    if (!any && request->root >= group->world) {
        snprintf(message, CC_MESSAGE_MAX, "%u is no rank of this group of %u", request->root,
                 group->world);
        return CC_INVALID;
    }
    if (!any && request->root == group->ranks[group->me])
        why = "a peer cannot send to itself or receive from itself";
    else if (request->count > 0 && (sends ? request->in == NULL : request->out == NULL))
        why = "the buffer is missing";
    if (why == NULL) return CC_OK;
    snprintf(message, CC_MESSAGE_MAX, "%s", why);
    return CC_INVALID;
}

static int64_t member_of_rank(const cc__group *group, uint32_t rank) {
    for (uint32_t i = 0; i < group->size; i++)
        if (group->ranks[i] == rank) return group->gone[i] ? -1 : (int64_t)i;
    return -1;
}

static cc_status busy(char *message) {
    snprintf(message, CC_MESSAGE_MAX, "too many messages are under way: wait for one");
    return CC_BUSY;
}

static cc__op *open_op(cc__group *group, const cc_request *request, uint64_t sequence,
                       int64_t now) {
    cc__op *op = cc__op_new(request, NULL, group->id, sequence);
    if (op == NULL) return NULL;
    if (request->timeout_ms >= 0 && request->timeout_ms < (INT64_MAX - now) / CC__MS)
        op->deadline_ns = now + request->timeout_ms * CC__MS;
    if (op->deadline_ns < group->pairs.deadline_ns) group->pairs.deadline_ns = op->deadline_ns;
    group->pairs.n_open++;
    op->posted_ns = group->links->now_ns = now;
    return op;
}

static cc_status post_send(cc__group *group, cc__pair *pair, cc__op *op) {
    cc__outgoing *outgoing = &pair->out[op->sequence % CC_PAIR_WINDOW];
    op->pair = pair;
    pair->sent = op->sequence;
    *outgoing = (cc__outgoing){.sequence = op->sequence, .op = op};
    cc__pair_offer(group, pair, outgoing);
    return CC_OK;
}

static cc_status post_receive(cc__group *group, cc__pair *pair, cc__op *op) {
    cc__pair *from = NULL;
    op->pair = pair;
    cc__incoming *incoming = cc__pair_first_match(group, op, &from);
    if (incoming) {
        op->pair = from;
        cc__pair_take(group, from, incoming, op);
        return CC_OK;
    }
    cc__op_append(&group->pairs.receives, op);
    return CC_OK;
}

cc_status cc__pair_post(cc__group *group, const cc_request *request, int64_t now, cc__op **out,
                        char *message) {
    cc_status status = check(group, request, message);
    if (status != CC_OK) return status;
    bool any = request->kind == CC_RECEIVE && request->root == CC_ANY_SOURCE;
    int64_t member = any ? -1 : member_of_rank(group, request->root);
    cc__pair *pair = member < 0 ? NULL : cc__pair_get(group, (uint32_t)member, true);
    if (member >= 0 && pair == NULL) return CC_NO_MEMORY;
    if (group->pairs.n_open >= CC_MESSAGES_MAX) return busy(message);
    uint64_t sequence = request->kind == CC_SEND && pair ? pair->sent + 1 : 0;
    if (sequence && pair->out[sequence % CC_PAIR_WINDOW].sequence) return busy(message);
    cc__op *op = *out = open_op(group, request, sequence, now);
    if (op == NULL) return CC_NO_MEMORY;
    cc__op_trace(op, group->links, CC_TRACE_MESSAGE_POSTED, 0, pair ? &pair->id : NULL);
    bool nobody = any ? cc__pair_nobody_left(group) : member < 0;
    if (nobody) {
        op->info.lost_rank = request->root;
        char why[CC_MESSAGE_MAX] = "no other member is left";
        if (!any) snprintf(why, sizeof why, "the peer of rank %u was lost", request->root);
        cc__pair_complete(group, op, CC_PEER_LOST, why);
        return CC_OK;
    }
    return request->kind == CC_SEND ? post_send(group, pair, op) : post_receive(group, pair, op);
}
