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

/* Members that take part in the rounds are numbered 0 .. 2^p - 1 in their order. */
static uint32_t member_of(uint32_t number, uint32_t folded) {
    return number < folded ? 2 * number : number + folded;
}

/* The odd member of a pair. It overwrites its input with the total, which cannot come before the
 * input was sent: no fence. */
static void build_folded(const cc__plan_input *input, cc__plan *plan) {
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
    uint32_t power = 1;
    while (2 * power <= input->size) {
        power *= 2;
    }
    const uint32_t folded = input->size - power;
    const int has_pair = input->me < 2 * folded;
    plan->eager = bytes <= CC_EAGER_BYTES;
    if (has_pair && input->me % 2 == 1) {
        build_folded(input, plan);
        return;
    }

    const uint32_t number = has_pair ? input->me / 2 : input->me - folded;
    cc__place partial = cc__at(CC__IN, 0);
    int32_t last = -1;
    if (has_pair) {
        last = cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                             .peer = input->me + 1,
                                             .after = -1,
                                             .bytes = bytes,
                                             .src = partial,
                                             .dst = cc__at(CC__OUT, 0)});
        partial = cc__at(CC__OUT, 0);
    }
    for (uint32_t distance = 1; distance < power; distance *= 2) {
        uint32_t partner = number ^ distance;
        uint32_t flags = CC__MOVE_FENCE;
        flags |= partner < number ? CC__MOVE_INCOMING_FIRST : 0;
        flags |= 2 * distance == power ? CC__MOVE_FINISH : 0;
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = member_of(partner, folded),
                                      .after = last,
                                      .bytes = bytes,
                                      .src = partial});
        last = cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                             .flags = flags,
                                             .peer = member_of(partner, folded),
                                             .after = -1,
                                             .bytes = bytes,
                                             .src = partial,
                                             .dst = cc__at(CC__OUT, 0),
                                             .hold = cc__stage(plan, bytes)});
        partial = cc__at(CC__OUT, 0);
    }
    if (has_pair) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = input->me + 1,
                                      .after = last,
                                      .bytes = bytes,
                                      .src = partial});
    }
}
