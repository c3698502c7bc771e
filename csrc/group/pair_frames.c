/* What the other peer says of messages: offers, answers, pieces. Nothing of it is trusted. */
#include "csrc/group/pair_internal.h"

#include <stdio.h>
#include <stdlib.h>

bool cc__pair_is_frame(const cc__frame *frame) {
    return frame->type >= CC__OFFER && frame->type <= CC__PIECE;
}

/* ---- offers ------------------------------------------------------------------------------- */

/* The bytes of the message that is offered, or -1: no such message can be. */
static int64_t offered_bytes(const cc__frame *frame) {
    const cc__signature *sent = &frame->signature;
    uint64_t element = cc_dtype_bytes((cc_dtype)sent->dtype);
    bool sound = sent->kind == CC_SEND && element > 0 && sent->root < CC_TAGS &&
                 frame->sequence > 0 && sent->count <= (UINT64_C(1) << 60) / element;
    if (!sound) return -1;
    int64_t bytes = (int64_t)(sent->count * element);
    return frame->length == 0 || frame->length == bytes ? bytes : -1;
}

/* An offer that was made before, on another connection. */
static void answer_again(cc__group *group, cc__pair *pair, uint64_t sequence) {
    const cc__settled *settled = &pair->settled[sequence % CC_PAIR_WINDOW];
    cc__incoming *incoming = cc__pair_incoming(pair, sequence);
    if (settled->sequence == sequence) {
        cc__pair_send(group, pair, CC__TAKEN, sequence, (uint64_t)settled->status);
    } else if (incoming && !incoming->is_offered) {
        cc__op *op = incoming->op;
        incoming->is_offered = true;
        incoming->op = NULL;
        if (op) cc__pair_take(group, pair, incoming, op);
    }
}

static bool is_known(const cc__pair *pair, uint64_t sequence) {
    return pair->settled[sequence % CC_PAIR_WINDOW].sequence == sequence ||
           cc__pair_incoming(pair, sequence);
}

/* Whether a later message has the slot: this one is long over. */
static bool is_past(const cc__pair *pair, uint64_t sequence) {
    uint64_t slot = sequence % CC_PAIR_WINDOW;
    return pair->settled[slot].sequence > sequence ||
           (pair->in[slot] && pair->in[slot]->sequence > sequence);
}

/* Keeps an offer. NULL: no memory, or no honest peer would make it. */
static cc__incoming *keep(cc__group *group, cc__pair *pair, const cc__frame *frame) {
    uint64_t slot = frame->sequence % CC_PAIR_WINDOW;
    bool in_window = !pair->in[slot] && pair->settled[slot].sequence < frame->sequence;
    if (!in_window || (frame->length > 0 && pair->n_stored == CC_PAIR_INLINE_MAX)) {
        cc__links_accuse(group->links, pair->link);
        return NULL;
    }
    cc__incoming *incoming = calloc(1, sizeof *incoming);
    uint8_t *payload = frame->length ? malloc(frame->length) : NULL;
    if (incoming == NULL || (frame->length && payload == NULL)) {
        free(incoming);
        free(payload);
        cc__links_accuse(group->links, pair->link); /* it is offered again */
        return NULL;
    }
    *incoming = (cc__incoming){.sequence = frame->sequence,
                               .arrival = ++group->pairs.arrivals,
                               .signature = frame->signature,
                               .payload = payload,
                               .bytes = frame->length,
                               .is_offered = true,
                               .is_whole = frame->length > 0 || frame->signature.count == 0};
    pair->n_stored += payload != NULL;
    pair->n_in++;
    pair->in[slot] = incoming;
    return incoming;
}

/* All of an offer is here: the first receive that fits has it. */
static void match(cc__group *group, cc__pair *pair, cc__incoming *incoming) {
    incoming->is_complete = true;
    for (cc__op *op = group->pairs.receives; op; op = op->next_active) {
        if (!cc__pair_matches(pair, incoming, op)) continue;
        cc__op_delist(op);
        op->pair = pair;
        cc__pair_take(group, pair, incoming, op);
        return;
    }
}

static void on_offer(cc__group *group, cc__pair *pair, const cc__frame *frame) {
    if (is_known(pair, frame->sequence)) {
        answer_again(group, pair, frame->sequence);
        return;
    }
    cc__incoming *incoming = keep(group, pair, frame);
    if (incoming) match(group, pair, incoming);
}

/* ---- answers ------------------------------------------------------------------------------ */

static const char *refusal(cc_status status) {
    switch (status) {
    case CC_OK: return "";
    case CC_MISMATCH: return "the receiver asked for another dtype or count under this tag";
    case CC_TIMED_OUT: return "the receiver's deadline passed while it was under way";
    default: return "the receiver could not take it";
    }
}

static void on_taken(cc__group *group, cc__pair *pair, cc__outgoing *outgoing, uint64_t status) {
    cc__op *op = outgoing->op;
    if (outgoing->is_inline) pair->n_inline--;
    *outgoing = (cc__outgoing){0};
    if (op == NULL) return;
    cc_status known = status <= CC_SYSTEM && status != CC_PENDING ? (cc_status)status : CC_PROTOCOL;
    cc__op_delist(op);
    cc__pair_complete(group, op, known, refusal(known));
}

static void on_accept(cc__group *group, cc__outgoing *outgoing) {
    cc__op *op = outgoing->op;
    if (op == NULL || op->started) return;
    if (cc__pair_move(group, op) == CC_OK) return;
    cc__pair *pair = op->pair;
    outgoing->op = NULL;
    cc__pair_complete(group, op, CC_NO_MEMORY, "out of memory");
    cc__pair_send(group, pair, CC__CANCEL, outgoing->sequence, 0);
}

/* The sender gave up. A receive that had begun to take the message takes another one. */
static void on_cancel(cc__group *group, cc__pair *pair, uint64_t sequence) {
    cc__incoming *incoming = cc__pair_incoming(pair, sequence);
    if (incoming == NULL) {
        cc__settled *settled = &pair->settled[sequence % CC_PAIR_WINDOW];
        if (settled->sequence < sequence) *settled = (cc__settled){sequence, CC_TIMED_OUT};
        cc__pair_send(group, pair, CC__TAKEN, sequence, CC_TIMED_OUT);
        return;
    }
    cc__op *op = incoming->op;
    cc__pair_settle(group, pair, incoming, CC_TIMED_OUT);
    if (op == NULL) return;
    cc__pair_receive_again(group, op);
}

void cc__pair_on_frame(cc__group *group, uint32_t member, const cc__frame *frame) {
    cc__pair *pair = cc__pair_get(group, member, true);
    if (pair == NULL) return;
    cc__outgoing *outgoing = cc__pair_outgoing(pair, frame->sequence);
    switch (frame->type) {
    case CC__OFFER:
        if (offered_bytes(frame) < 0)
            cc__links_accuse(group->links, pair->link);
        else
            on_offer(group, pair, frame);
        break;
    case CC__ACCEPT:
        if (outgoing) on_accept(group, outgoing);
        break;
    case CC__TAKEN:
        if (outgoing) on_taken(group, pair, outgoing, frame->offset);
        break;
    case CC__CANCEL: on_cancel(group, pair, frame->sequence); break;
    default: break;
    }
}

/* ---- data --------------------------------------------------------------------------------- */

static void want_offer(cc__group *group, cc__pair *pair, cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    if (offered_bytes(frame) < 0) {
        cc__links_accuse(group->links, pair->link);
        return;
    }
    if (is_known(pair, frame->sequence)) {
        answer_again(group, pair, frame->sequence);
        cc__links_place(group->links, channel, NULL, NULL);
        return;
    }
    cc__incoming *incoming = keep(group, pair, frame);
    if (incoming) cc__links_place(group->links, channel, incoming->payload, incoming);
}

void cc__pair_on_want(cc__group *group, uint32_t member, cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    cc__pair *pair = cc__pair_get(group, member, true);
    void *place = NULL;
    if (pair && frame->type == CC__OFFER) {
        want_offer(group, pair, channel);
        return;
    }
    cc__incoming *incoming = pair ? cc__pair_incoming(pair, frame->sequence) : NULL;
    cc__op *op = incoming ? incoming->op : NULL;
    if (op == NULL && pair && !is_known(pair, frame->sequence) && !is_past(pair, frame->sequence)) {
        cc__links_accuse(group->links, pair->link); /* data that nobody was told to send */
        return;
    }
    if (op && cc__op_expect(op, frame, 0, &place) != CC_OK) {
        cc__links_accuse(group->links, pair->link);
        return;
    }
    cc__links_place(group->links, channel, place, op);
}

void cc__pair_on_payload(cc__group *group, uint32_t member, cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    cc__pair *pair = cc__pair_get(group, member, false);
    cc__incoming *incoming = pair ? cc__pair_incoming(pair, frame->sequence) : NULL;
    if (incoming == NULL || channel->in_owner == NULL) return;
    if (channel->in_owner == incoming) {
        channel->in_owner = NULL;
        match(group, pair, incoming);
    } else if (channel->in_owner == incoming->op) {
        channel->in_owner = NULL;
        cc__op_moved(incoming->op, group->links, pair->link);
        cc__op_take(incoming->op, frame, 0, channel->place);
        incoming->op->more = true;
    }
}
