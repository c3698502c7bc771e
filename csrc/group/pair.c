/* The messages there are, what is offered of them, and how they end. */
#include "csrc/group/mend.h"
#include "csrc/group/pair_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what there is ------------------------------------------------------------------------ */

static cc__pair *find(const cc__group *group, const cc_peer_id *id) {
    for (cc__pair *pair = group->pairs.first; pair; pair = pair->next)
        if (memcmp(pair->id.bytes, id->bytes, sizeof id->bytes) == 0) return pair;
    return NULL;
}

static void forget(cc__group *group, cc__pair *pair, cc__incoming *incoming) {
    cc__links_release(group->links, incoming);
    pair->in[incoming->sequence % CC_PAIR_WINDOW] = NULL;
    pair->n_stored -= incoming->payload != NULL;
    pair->n_in--;
    free(incoming->payload);
    free(incoming);
}

/* A long message goes on, from its beginning, once it is offered again. */
static void stop_incoming(cc__group *group, cc__incoming *incoming) {
    incoming->is_offered = false;
    if (incoming->op == NULL || !incoming->op->started) return;
    cc__op_delist(incoming->op);
    cc__op_rewind(incoming->op, group->links);
}

/* The session is a new one: what was under way begins again, in both directions. */
static void start_over(cc__group *group, cc__pair *pair) {
    pair->session = pair->link->session.id;
    pair->greeted = false; /* nothing new may overtake what is offered again */
    for (uint32_t slot = 0; slot < CC_PAIR_WINDOW; slot++) {
        cc__outgoing *outgoing = &pair->out[slot];
        cc__incoming *incoming = pair->in[slot];
        if (incoming && !incoming->is_complete)
            forget(group, pair, incoming);
        else if (incoming && !incoming->is_whole)
            stop_incoming(group, incoming);
        outgoing->offered = false; /* what was inline stays so: the peer may have stored it */
        if (outgoing->op == NULL || !outgoing->op->started) continue;
        cc__op_delist(outgoing->op);
        cc__op_rewind(outgoing->op, group->links);
    }
}

void cc__pair_connected(cc__group *group, uint32_t member) {
    cc__pair_get(group, member, false);
}

/* What was under way when the connection broke comes again, or is asked for. */
void cc__pair_mended(cc__group *group, uint32_t member) {
    cc__pair *pair = cc__pair_get(group, member, false);
    for (uint32_t slot = 0; pair && slot < CC_PAIR_WINDOW; slot++) {
        cc__incoming *incoming = pair->in[slot];
        cc__op *receive = incoming ? incoming->op : NULL, *send = pair->out[slot].op;
        if (send && send->started) cc__op_mended(send, 0);
        if (receive && receive->started) {
            cc__op_mended(receive, 0);
            cc__mend_ask(group, pair->link, receive, 0);
        }
        if (incoming && !incoming->is_complete) forget(group, pair, incoming);
    }
}

void cc__pair_resume(cc__group *group, uint32_t member, const cc__frame *frame,
                     const uint8_t *bitmap) {
    cc__pair *pair = cc__pair_get(group, member, false);
    const cc__outgoing *outgoing = pair ? cc__pair_outgoing(pair, frame->sequence) : NULL;
    if (outgoing == NULL || outgoing->op == NULL || !outgoing->op->started) return;
    cc_status status = cc__op_resume(outgoing->op, 0, frame->slot, bitmap, frame->length);
    if (status == CC_PROTOCOL) cc__links_accuse(group->links, pair->link);
    if (status == CC_UNSUPPORTED) cc__links_give_up(group->links, pair->link); /* no memory */
}

void cc__pair_resumed(cc__group *group, uint32_t member) {
    cc__pair *pair = cc__pair_get(group, member, false);
    for (uint32_t slot = 0; pair && slot < CC_PAIR_WINDOW; slot++) {
        cc__op *op = pair->out[slot].op;
        if (op == NULL || !op->started || !cc__op_resumed(op, 0)) continue;
        op->done = false;
        cc__op_delist(op);
        cc__op_append(&group->pairs.active, op);
    }
}

cc__pair *cc__pair_get(cc__group *group, uint32_t member, bool make) {
    cc__pair *pair = find(group, &group->members[member].id);
    bool is_new = pair && pair->link->session.id && pair->session != pair->link->session.id;
    if (is_new) start_over(group, pair);
    if (pair || !make) return pair;
    pair = calloc(1, sizeof *pair);
    if (pair == NULL) return NULL;
    pair->id = group->members[member].id;
    pair->rank = group->ranks[member];
    pair->link = group->member_links[member];
    pair->session = pair->link->session.id;
    pair->greeted = group->installed[member];
    pair->next = group->pairs.first;
    group->pairs.first = pair;
    return pair;
}

cc__outgoing *cc__pair_outgoing(cc__pair *pair, uint64_t sequence) {
    cc__outgoing *outgoing = &pair->out[sequence % CC_PAIR_WINDOW];
    return sequence > 0 && outgoing->sequence == sequence ? outgoing : NULL;
}

cc__incoming *cc__pair_incoming(const cc__pair *pair, uint64_t sequence) {
    cc__incoming *incoming = pair->in[sequence % CC_PAIR_WINDOW];
    return incoming && incoming->sequence == sequence ? incoming : NULL;
}

/* ---- how they end ------------------------------------------------------------------------- */

void cc__pair_complete(cc__group *group, cc__op *op, cc_status status, const char *message) {
    cc__op_abandon(op, group->links, false);
    op->contributors = 2;
    group->pairs.n_open--;
    group->pairs.finished++;
    cc__op_trace(op, group->links, CC_TRACE_MESSAGE_ENDED, status, op->pair ? &op->pair->id : NULL);
    char told[CC_MESSAGE_MAX] = "";
    const char *name = op->request.kind == CC_SEND ? "send" : "recv";
    int room = (int)(sizeof told - sizeof "send: ");
    if (status != CC_OK) snprintf(told, sizeof told, "%s: %.*s", name, room, message);
    cc__op_finish(op, status, told);
}

void cc__pair_settle(cc__group *group, cc__pair *pair, cc__incoming *incoming, cc_status status) {
    uint64_t sequence = incoming->sequence;
    pair->settled[sequence % CC_PAIR_WINDOW] = (cc__settled){sequence, status};
    forget(group, pair, incoming);
    cc__pair_send(group, pair, CC__TAKEN, sequence, (uint64_t)status);
}

/* Takes it out of the list, if it is in there. */
static void unlink_pair(cc__group *group, const cc__pair *pair) {
    cc__pair **at = &group->pairs.first;
    while (*at && *at != pair) at = &(*at)->next;
    if (*at) *at = pair->next;
}

/* Ends everything with one peer. */
static void end_pair(cc__group *group, cc__pair *pair, cc_status why, const char *message) {
    for (uint32_t slot = 0; slot < CC_PAIR_WINDOW; slot++) {
        cc__op *ops[2] = {pair->out[slot].op, pair->in[slot] ? pair->in[slot]->op : NULL};
        if (pair->in[slot]) forget(group, pair, pair->in[slot]);
        for (int i = 0; i < 2; i++) {
            if (ops[i] == NULL) continue;
            ops[i]->info.lost = pair->id;
            ops[i]->info.lost_rank = pair->rank;
            cc__op_delist(ops[i]);
            cc__pair_complete(group, ops[i], why, message);
        }
    }
    for (cc__op *op = group->pairs.receives, *next; op; op = next) {
        next = op->next_active;
        if (op->pair != pair) continue;
        op->info.lost = pair->id;
        op->info.lost_rank = pair->rank;
        cc__op_delist(op);
        cc__pair_complete(group, op, why, message);
    }
    unlink_pair(group, pair);
    free(pair);
}

static void lose(cc__group *group, cc__pair *pair) {
    char message[CC_MESSAGE_MAX];
    uint64_t last = 0;
    unlink_pair(group, pair); /* nothing of it is matched any more */
    for (uint32_t slot = 0; slot < CC_PAIR_WINDOW; slot++)
        if (pair->in[slot] && pair->in[slot]->sequence > last) last = pair->in[slot]->sequence;
    /* The last one first, as each goes before all others: their order stays. */
    for (uint64_t sequence = last; sequence > 0 && last - sequence < CC_PAIR_WINDOW; sequence--) {
        cc__incoming *incoming = cc__pair_incoming(pair, sequence);
        cc__op *op = incoming ? incoming->op : NULL;
        if (op == NULL || op->request.root != CC_ANY_SOURCE) continue;
        forget(group, pair, incoming);
        cc__pair_receive_again(group, op);
    }
    snprintf(message, sizeof message,
             "the peer of rank %u was lost; whether it has what was sent to it is unknown",
             pair->rank);
    end_pair(group, pair, CC_PEER_LOST, message);
}

bool cc__pair_nobody_left(const cc__group *group) {
    for (uint32_t i = 0; i < group->size; i++)
        if (i != group->me && !group->gone[i]) return false;
    return true;
}

/* Who receives from anybody waits in vain if nobody is left. */
static void end_hopeless(cc__group *group) {
    for (cc__op *op; cc__pair_nobody_left(group) && (op = group->pairs.receives) != NULL;) {
        cc__op_delist(op);
        cc__pair_complete(group, op, CC_PEER_LOST, "no other member is left to receive from");
    }
}

void cc__pair_gone(cc__group *group, const cc_peer_id *id) {
    cc__pair *pair = find(group, id);
    if (pair) lose(group, pair);
    end_hopeless(group);
}

void cc__pair_renew(cc__group *group) {
    for (cc__pair *pair = group->pairs.first, *next; pair; pair = next) {
        next = pair->next;
        uint32_t member = 0;
        while (member < group->size &&
               memcmp(group->members[member].id.bytes, pair->id.bytes, sizeof pair->id.bytes) != 0)
            member++;
        if (member == group->size) {
            lose(group, pair);
            continue;
        }
        pair->link = group->member_links[member];
        pair->rank = group->ranks[member];
        pair->greeted = false;
    }
    end_hopeless(group);
}

void cc__pair_end(cc__group *group, cc_status why, const char *message) {
    while (group->pairs.first) end_pair(group, group->pairs.first, why, message);
    for (cc__op *op; (op = group->pairs.receives) != NULL;) {
        cc__op_delist(op);
        cc__pair_complete(group, op, why, message);
    }
}

/* ---- offers ------------------------------------------------------------------------------- */

void cc__pair_send(cc__group *group, cc__pair *pair, cc__frame_type type, uint64_t sequence,
                   uint64_t status) {
    cc__frame frame = {
        .type = (uint8_t)type, .group = group->id, .sequence = sequence, .offset = status};
    cc__links_send(group->links, pair->link, &frame, NULL);
}

void cc__pair_offer(cc__group *group, cc__pair *pair, cc__outgoing *outgoing) {
    bool is_current = pair->greeted && pair->session == pair->link->session.id;
    if (!is_current || !cc__link_lives(pair->link)) return; /* later, by greet */
    outgoing->offered = true;
    if (outgoing->op == NULL) {
        cc__pair_send(group, pair, CC__CANCEL, outgoing->sequence, 0);
        return;
    }
    const cc_request *request = &outgoing->op->request;
    uint64_t bytes = request->count * outgoing->op->element_bytes;
    bool fits = bytes > 0 && bytes <= CC_EAGER_BYTES && pair->n_inline < CC_PAIR_INLINE_MAX;
    if (fits && !outgoing->is_inline) {
        outgoing->is_inline = true;
        pair->n_inline++;
    }
    cc__frame frame = {
        .type = CC__OFFER,
        .group = group->id,
        .length = outgoing->is_inline ? (uint32_t)bytes : 0,
        .sequence = outgoing->sequence,
        .signature = {.kind = CC_SEND,
                      .dtype = (uint8_t)request->dtype,
                      .root = request->tag,
                      .count = request->count},
    };
    cc__links_send(group->links, pair->link, &frame, request->in);
}

void cc__pair_greet(cc__group *group, uint32_t member) {
    cc__pair *pair = cc__pair_get(group, member, false);
    if (pair == NULL) return;
    pair->greeted = true;
    uint64_t oldest = pair->sent > CC_PAIR_WINDOW ? pair->sent - CC_PAIR_WINDOW + 1 : 1;
    for (uint64_t sequence = oldest; sequence <= pair->sent; sequence++) {
        cc__outgoing *outgoing = cc__pair_outgoing(pair, sequence);
        if (outgoing && !outgoing->offered) cc__pair_offer(group, pair, outgoing);
    }
}

/* ---- matching ----------------------------------------------------------------------------- */

bool cc__pair_matches(const cc__pair *pair, const cc__incoming *incoming, const cc__op *op) {
    return incoming->is_complete && incoming->op == NULL &&
           (op->pair == NULL || op->pair == pair) && op->request.tag == incoming->signature.root;
}

cc_status cc__pair_move(cc__group *group, cc__op *op) {
    op->begun_ns = cc__now(&group->links->clock);
    cc_status status = cc__op_start_message(op, group->links->segment_bytes);
    if (status == CC_OK) cc__op_append(&group->pairs.active, op);
    return status;
}

static bool same_length(const cc__incoming *incoming, const cc__op *op, uint32_t rank,
                        char *message) {
    const cc__signature *sent = &incoming->signature;
    if (sent->dtype == (uint8_t)op->request.dtype && sent->count == op->request.count) return true;
    char theirs[96], ours[96];
    cc__signature_text(sent, theirs, sizeof theirs);
    cc__signature_text(&op->signature, ours, sizeof ours);
    snprintf(message, CC_MESSAGE_MAX, "rank %u called %s with tag %u, this peer %s", rank, theirs,
             op->request.tag, ours);
    return false;
}

void cc__pair_take(cc__group *group, cc__pair *pair, cc__incoming *incoming, cc__op *op) {
    char message[CC_MESSAGE_MAX] = "";
    op->sequence = op->info.sequence = incoming->sequence;
    op->info.source = pair->rank;
    if (!same_length(incoming, op, pair->rank, message)) {
        cc__pair_settle(group, pair, incoming, CC_MISMATCH);
        cc__pair_complete(group, op, CC_MISMATCH, message);
    } else if (incoming->is_whole) {
        if (incoming->payload) memcpy(op->request.out, incoming->payload, incoming->bytes);
        cc__pair_settle(group, pair, incoming, CC_OK);
        cc__pair_complete(group, op, CC_OK, "");
    } else if (!incoming->is_offered) {
        incoming->op = op;
    } else if (cc__pair_move(group, op) != CC_OK) {
        cc__pair_settle(group, pair, incoming, CC_NO_MEMORY);
        cc__pair_complete(group, op, CC_NO_MEMORY, "out of memory");
    } else {
        incoming->op = op;
        cc__pair_send(group, pair, CC__ACCEPT, incoming->sequence, 0);
    }
}

cc__incoming *cc__pair_first_match(const cc__group *group, const cc__op *op, cc__pair **found) {
    cc__incoming *first = NULL;
    for (cc__pair *pair = group->pairs.first; pair; pair = pair->next) {
        for (uint32_t slot = 0; slot < CC_PAIR_WINDOW && pair->n_in > 0; slot++) {
            cc__incoming *incoming = pair->in[slot];
            if (incoming == NULL || !cc__pair_matches(pair, incoming, op)) continue;
            if (first && incoming->arrival > first->arrival) continue;
            first = incoming;
            *found = pair;
        }
    }
    return first;
}

void cc__pair_receive_again(cc__group *group, cc__op *op) {
    cc__pair *from = NULL;
    cc__op_delist(op);
    cc__op_rewind(op, group->links);
    if (op->request.root == CC_ANY_SOURCE) op->pair = NULL;
    cc__incoming *incoming = cc__pair_first_match(group, op, &from);
    if (incoming == NULL) {
        cc__op_enlist(&group->pairs.receives, op);
        return;
    }
    op->pair = from;
    cc__pair_take(group, from, incoming, op);
}

/* ---- time --------------------------------------------------------------------------------- */

bool cc__pair_pump(cc__group *group) {
    bool more = false;
    for (cc__op *op = group->pairs.active, *next; op; op = next) {
        next = op->next_active;
        if (op->more) {
            cc__op_pump(op, group->links, &op->pair->link);
            more |= op->more;
        }
        if (!op->done) continue;
        cc__op_delist(op); /* a send waits for the word that it was taken */
        if (op->request.kind == CC_SEND) continue;
        cc__pair *pair = op->pair;
        cc__pair_settle(group, pair, cc__pair_incoming(pair, op->sequence), CC_OK);
        cc__pair_complete(group, op, CC_OK, "");
    }
    return more;
}

static bool expired(cc__group *group, const cc__op *op, int64_t now) {
    if (op == NULL) return false;
    if (op->deadline_ns <= now) return true;
    if (op->deadline_ns < group->pairs.deadline_ns) group->pairs.deadline_ns = op->deadline_ns;
    return false;
}

static void expire_slot(cc__group *group, cc__pair *pair, uint32_t slot, int64_t now) {
    cc__outgoing *outgoing = &pair->out[slot];
    cc__incoming *incoming = pair->in[slot];
    if (expired(group, outgoing->op, now)) {
        cc__op *op = outgoing->op;
        outgoing->op = NULL;
        outgoing->offered = false;
        cc__op_delist(op);
        cc__pair_complete(group, op, CC_TIMED_OUT, "its deadline passed; it may have been taken");
        cc__pair_offer(group, pair, outgoing);
    }
    if (incoming && expired(group, incoming->op, now)) {
        cc__op *op = incoming->op;
        cc__op_delist(op);
        cc__pair_complete(group, op, CC_TIMED_OUT, "its deadline passed while it was under way");
        cc__pair_settle(group, pair, incoming, CC_TIMED_OUT);
    }
}

int64_t cc__pair_tick(cc__group *group, int64_t now) {
    if (now < group->pairs.deadline_ns) return group->pairs.deadline_ns;
    group->pairs.deadline_ns = CC__NEVER;
    for (cc__pair *pair = group->pairs.first; pair; pair = pair->next)
        for (uint32_t slot = 0; slot < CC_PAIR_WINDOW; slot++) expire_slot(group, pair, slot, now);
    for (cc__op *op = group->pairs.receives, *next; op; op = next) {
        next = op->next_active;
        if (!expired(group, op, now)) continue;
        cc__op_delist(op);
        cc__pair_complete(group, op, CC_TIMED_OUT, "its deadline passed and nothing came");
    }
    return group->pairs.deadline_ns;
}
