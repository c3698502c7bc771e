/* Recursive doubling: in round k a member exchanges its whole partial result with the member 2^k
 * away, so all have the total after log2(m) rounds. Few messages, each of full length: best where
 * latency rules. Thakur, Rabenseifner & Gropp, 2005, for the case that m is no power of two: with
 * 2^p the largest power of two in m, the first 2(m - 2^p) members pair up, the odd one of each pair
 * hands its input to the even one before the rounds and gets the total after them.
 *
 * A partial result always covers a contiguous block of members, and the block of lower members is
 * the left operand on both sides of an exchange. So all members compute the same expression.
 *
 * What a round sends it also overwrites, and the partner's data may come before ours has left:
 * each round's reduction waits for all earlier moves (a fence) and has a holding area. */
#include "csrc/plan/builders.h"

cc__fold_up cc__fold_up_of(const cc__plan_input *input) {
    cc__fold_up fold = {.power = 1};
    while (2 * fold.power <= input->size) {
        fold.power *= 2;
    }
    fold.folded = input->size - fold.power;
    fold.has_pair = input->me < 2 * fold.folded;
    fold.stays_out = fold.has_pair && input->me % 2 == 1;
    fold.number = fold.has_pair ? input->me / 2 : input->me - fold.folded;
    return fold;
}

uint32_t cc__fold_up_member(const cc__fold_up *fold, uint32_t number) {
    return number < fold->folded ? 2 * number : number + fold->folded;
}

/* It overwrites its input with the total, which cannot come before the input was sent: no fence. */
void cc__fold_up_outside(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                  .peer = input->me - 1,
                                  .after = -1,
                                  .bytes = bytes,
                                  .src = cc__at(CC__IN, 0)});
    cc__plan_add(plan, (cc__move){.kind = CC__PLACE,
                                  .peer = input->me - 1,
                                  .after = -1,
                                  .bytes = bytes,
                                  .dst = cc__at(CC__OUT, 0)});
}

void cc__doubling_all_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    const cc__fold_up fold = cc__fold_up_of(input);
    plan->eager = bytes <= CC_EAGER_BYTES;
    if (fold.stays_out) {
        cc__fold_up_outside(input, plan);
        return;
    }
    cc__place partial = cc__at(CC__IN, 0);
    int32_t last = -1;
    if (fold.has_pair) {
        last = cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                             .peer = input->me + 1,
                                             .after = -1,
                                             .bytes = bytes,
                                             .src = partial,
                                             .dst = cc__at(CC__OUT, 0)});
        partial = cc__at(CC__OUT, 0);
    }
    for (uint32_t distance = 1; distance < fold.power; distance *= 2) {
        uint32_t partner = fold.number ^ distance;
        uint32_t flags = CC__MOVE_FENCE;
        flags |= partner < fold.number ? CC__MOVE_INCOMING_FIRST : 0;
        flags |= 2 * distance == fold.power ? CC__MOVE_FINISH : 0;
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = cc__fold_up_member(&fold, partner),
                                      .after = last,
                                      .bytes = bytes,
                                      .src = partial});
        last = cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                             .flags = flags,
                                             .peer = cc__fold_up_member(&fold, partner),
                                             .after = -1,
                                             .bytes = bytes,
                                             .src = partial,
                                             .dst = cc__at(CC__OUT, 0),
                                             .hold = cc__stage(plan, bytes)});
        partial = cc__at(CC__OUT, 0);
    }
    if (fold.has_pair) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = input->me + 1,
                                      .after = last,
                                      .bytes = bytes,
                                      .src = partial});
    }
}
