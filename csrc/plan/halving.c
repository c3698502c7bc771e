/* Recursive halving and doubling: a reduce-scatter in log2(m) rounds, in each of which a member
 * exchanges half of what it still has with the member that is half as far away as in the round
 * before, then the same rounds backwards as an all-gather. As few steps as recursive doubling, as few
 * bytes as the ring, but a step is not pipelined with the next: best for middling lengths.
 * Rabenseifner 2004; Thakur, Rabenseifner & Gropp 2005. Any number of members: see doubling.c.
 *
 * Each element is summed by one member in each round, and its total is made once and then copied, so
 * all members get its bits. The operand of the lower member is the left one.
 *
 * Fences: what a round sends or adds to is what the round before made. In place, the half that a
 * round overwrites in the all-gather was sent before, and its total cannot come before that has
 * arrived, so there is no fence on placing it. */
#include "csrc/plan/builders.h"

#define ROUNDS_MAX 32

typedef struct halving {
    const cc__plan_input *input;
    cc__plan *plan;
    cc__fold_up fold;
    uint32_t low, high; /* the chunks that this member still works on */
    cc__place partial;  /* where the first of all chunks lies */
    /* Messages so far between this member and its partner of each round. */
    uint32_t sent[ROUNDS_MAX], received[ROUNDS_MAX];
} halving;

static uint64_t offset_of(const halving *h, uint32_t chunk) {
    return cc__chunk_start(h->input->count, h->fold.power, chunk) * h->input->element_bytes;
}

static cc__place place_of(const halving *h, cc__place whole, uint32_t chunk) {
    return cc__at(whole.area, whole.offset + offset_of(h, chunk));
}

static void send_chunks(halving *h, uint32_t round, uint32_t low, uint32_t high) {
    uint32_t partner = h->fold.number ^ (1u << round);
    int32_t move =
        cc__plan_add(h->plan, (cc__move){.kind = CC__SEND,
                                         .flags = h->plan->n_moves > 0 ? CC__MOVE_FENCE : 0,
                                         .peer = cc__fold_up_member(&h->fold, partner),
                                         .slot = h->sent[round],
                                         .after = -1,
                                         .bytes = offset_of(h, high) - offset_of(h, low),
                                         .src = place_of(h, h->partial, low)});
    h->sent[round] += move >= 0;
}

/* Gives one half away and adds the partner's share of the other. */
static void halve(halving *h, uint32_t round) {
    uint32_t partner = h->fold.number ^ (1u << round), middle = (h->low + h->high) / 2;
    int keeps_lower = h->fold.number < partner;
    int is_first = h->plan->n_moves == 0;
    send_chunks(h, round, keeps_lower ? middle : h->low, keeps_lower ? h->high : middle);
    h->low = keeps_lower ? h->low : middle;
    h->high = keeps_lower ? middle : h->high;
    uint64_t bytes = offset_of(h, h->high) - offset_of(h, h->low);
    cc__move move = {.kind = CC__REDUCE,
                     .flags = (keeps_lower ? 0 : CC__MOVE_INCOMING_FIRST) |
                              (round == 0 ? CC__MOVE_FINISH : 0),
                     .peer = cc__fold_up_member(&h->fold, partner),
                     .slot = h->received[round],
                     .after = -1,
                     .bytes = bytes,
                     .src = place_of(h, h->partial, h->low),
                     .dst = place_of(h, cc__at(CC__OUT, 0), h->low)};
    if (!is_first) {
        move.flags |= CC__MOVE_FENCE;
        move.hold = cc__stage(h->plan, bytes);
    }
    h->received[round] += cc__plan_add(h->plan, move) >= 0;
}

/* Gives away the totals that this member has and gets as many. */
static void spread(halving *h, uint32_t round) {
    uint32_t partner = h->fold.number ^ (1u << round), length = h->high - h->low;
    uint32_t other = h->fold.number < partner ? h->high : h->low - length;
    send_chunks(h, round, h->low, h->high);
    int32_t move = cc__plan_add(
        h->plan, (cc__move){.kind = CC__PLACE,
                            .peer = cc__fold_up_member(&h->fold, partner),
                            .slot = h->received[round],
                            .after = -1,
                            .bytes = offset_of(h, other + length) - offset_of(h, other),
                            .dst = place_of(h, cc__at(CC__OUT, 0), other)});
    h->received[round] += move >= 0;
    h->low = h->low < other ? h->low : other;
    h->high = h->low + 2 * length;
}

void cc__halving_all_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    halving h = {.input = input, .plan = plan, .fold = cc__fold_up_of(input)};
    plan->eager = 0;
    if (h.fold.stays_out) {
        cc__fold_up_outside(input, plan);
        return;
    }
    h.high = h.fold.power;
    h.partial = cc__at(CC__IN, 0);
    if (h.fold.has_pair) {
        cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                      .peer = input->me + 1,
                                      .after = -1,
                                      .bytes = bytes,
                                      .src = h.partial,
                                      .dst = cc__at(CC__OUT, 0)});
        h.partial = cc__at(CC__OUT, 0);
    }
    uint32_t rounds = 0;
    while (1u << rounds < h.fold.power) {
        rounds++;
    }
    for (uint32_t round = rounds; round-- > 0;) {
        halve(&h, round);
        h.partial = cc__at(CC__OUT, 0);
    }
    for (uint32_t round = 0; round < rounds; round++) {
        spread(&h, round);
    }
    if (h.fold.has_pair) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .flags = CC__MOVE_FENCE,
                                      .peer = input->me + 1,
                                      .after = -1,
                                      .bytes = bytes,
                                      .src = cc__at(CC__OUT, 0)});
    }
}
