#include "csrc/group/mend.h"

static cc__op *running(const cc__group *group, const cc__lane *lane, uint64_t sequence) {
    cc__op *op = cc__lane_op(lane, sequence);
    return op && op->started && op->epoch == group->epoch ? op : NULL;
}

/* A message of so many segments that no frame can name them. An operation begins again in the next
 * epoch, a message between two peers in the next session. */
static void begin_again(cc__group *group, cc__link *link, const cc__op *op) {
    if (op->pair)
        cc__links_give_up(group->links, link);
    else
        cc__group_seal(group, CC_CAUSE_LINK, NULL, 0, "a connection broke under a huge message");
}

void cc__mend_ask(cc__group *group, cc__link *link, const cc__op *op, uint32_t from) {
    if (op->plan.eager) return;
    uint8_t bitmap[CC_EAGER_BYTES];
    uint32_t index = 0;
    while ((index = cc__op_next_incomplete(op, from, index)) < op->plan.n_moves) {
        uint64_t bytes = cc__op_bitmap_bytes(op, index);
        if (bytes > sizeof bitmap) {
            begin_again(group, link, op);
            return;
        }
        cc__op_bitmap(op, index, bitmap);
        cc__frame frame = {
            .type = CC__RESUME,
            .lane = (uint8_t)op->request.lane,
            .slot = (uint16_t)op->plan.moves[index].slot,
            .group = group->id,
            .length = (uint32_t)bytes,
            .epoch = op->epoch,
            .sequence = op->sequence,
            .offset = link->nonce,
            .signature = op->signature,
        };
        cc__links_send(group->links, link, &frame, bitmap);
        index++;
    }
}

/* Calls `each` for the operations of the epoch that may not be over at all members. */
static void for_each(cc__group *group, uint32_t member,
                     void (*each)(cc__group *, cc__op *, uint32_t)) {
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        const cc__lane *lane = group->lanes[i];
        if (lane == NULL) continue;
        for (uint64_t sequence = lane->tally.committed + 1; sequence <= lane->posted; sequence++) {
            cc__op *op = running(group, lane, sequence);
            if (op && group->state == CC__GROUP_ACTIVE) each(group, op, member);
        }
    }
}

static void mend(cc__group *group, cc__op *op, uint32_t member) {
    cc__op_mended(op, member);
    cc__mend_ask(group, group->member_links[member], op, member);
}

void cc__group_on_mended(cc__group *group, cc__link *link) {
    int64_t member = cc__group_member(group, link);
    if (member < 0 || group->state == CC__GROUP_ENDED) return;
    for_each(group, (uint32_t)member, mend);
    cc__pair_mended(group, (uint32_t)member);
}

void cc__group_on_resume(cc__group *group, const cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    int64_t found = cc__group_member(group, channel->link);
    if (found < 0 || group->state == CC__GROUP_ENDED) return;
    uint32_t member = (uint32_t)found;
    if (frame->signature.kind == CC_RECEIVE) {
        cc__pair_resume(group, member, frame, channel->place);
        return;
    }
    if (group->state != CC__GROUP_ACTIVE || frame->epoch != group->epoch) return;
    cc__lane *lane = cc__lane_of_frame(group, member, frame);
    cc__op *op = lane ? running(group, lane, frame->sequence) : NULL;
    if (op == NULL) return;
    switch (cc__op_resume(op, member, frame->slot, channel->place, frame->length)) {
    case CC_OK: break;
    case CC_PROTOCOL: cc__links_accuse(group->links, channel->link); break;
    default:
        cc__group_seal(group, CC_CAUSE_LINK, NULL, 0,
                       "a connection broke, and what was lost with it is not there any more");
    }
}

static void resume(cc__group *group, cc__op *op, uint32_t member) {
    if (op->verdict != CC_OK || !cc__op_resumed(op, member)) return;
    op->done = false;
    cc__op_delist(op);
    cc__op_append(&group->active, op);
}

void cc__group_on_resumed(cc__group *group, cc__link *link) {
    int64_t member = cc__group_member(group, link);
    if (member < 0 || group->state == CC__GROUP_ENDED) return;
    for_each(group, (uint32_t)member, resume);
    cc__pair_resumed(group, (uint32_t)member);
    for (cc__op *op = group->active; op; op = op->next_active) op->more = true;
    for (cc__op *op = group->pairs.active; op; op = op->next_active) op->more = true;
}
