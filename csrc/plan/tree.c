/* The binomial tree: in each of log2(m) rounds, everyone who has the data gives it to one who has
 * not (broadcast), or the other way round (reduce). Few steps on the critical path and little to send
 * for anyone but the root: best for short messages and many members. Thakur, Rabenseifner & Gropp,
 * 2005.
 *
 * Members are numbered from the root on. The subtree of number v at distance d are the numbers
 * v .. v + d - 1, so a partial sum always covers neighbours, and the own one is the left operand. */
#include "csrc/plan/builders.h"

static uint32_t number_of(const cc__plan_input *input) {
    return (input->me + input->size - input->root) % input->size;
}

static uint32_t member_of(const cc__plan_input *input, uint32_t number) {
    return (number + input->root) % input->size;
}

/* The distance to the parent; for the root, the first power of two that is not below the size. */
static uint32_t reach_of(const cc__plan_input *input, uint32_t number) {
    uint32_t reach = 1;
    while (reach < input->size && !(number & reach)) {
        reach *= 2;
    }
    return reach;
}

void cc__tree_broadcast(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    const uint32_t number = number_of(input), reach = reach_of(input, number);
    cc__place source = cc__at(CC__IN, 0);
    int32_t received = -1;

    if (number > 0) {
        source = cc__at(CC__OUT, 0);
        received = cc__plan_add(plan, (cc__move){.kind = CC__PLACE,
                                                 .peer = member_of(input, number - reach),
                                                 .after = -1,
                                                 .bytes = bytes,
                                                 .dst = source});
    }
    for (uint32_t distance = reach / 2; distance > 0;
         distance /= 2) { /* the largest subtree first */
        if (number + distance < input->size) {
            cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                          .peer = member_of(input, number + distance),
                                          .after = received,
                                          .bytes = bytes,
                                          .src = source});
        }
    }
    if (number == 0) {
        cc__plan_copy(plan, source, cc__at(CC__OUT, 0), bytes);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

void cc__tree_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    const uint32_t number = number_of(input), reach = reach_of(input, number);
    cc__place partial = cc__at(CC__IN, 0), sum = cc__at(CC__OUT, 0);
    int32_t last = -1;

    if (number > 0 && number % 2 == 0 && number + 1 < input->size) {
        sum = cc__stage(plan, bytes);
    }
    for (uint32_t distance = 1; distance < reach; distance *= 2) {
        if (number + distance >= input->size) {
            break;
        }
        int is_final = number == 0 && 2 * distance >= input->size;
        cc__move move = {.kind = CC__REDUCE,
                         .flags = is_final ? CC__MOVE_FINISH : 0,
                         .peer = member_of(input, number + distance),
                         .after = last,
                         .bytes = bytes,
                         .src = partial,
                         .dst = sum};
        if (last >= 0) {
            move.hold = cc__stage(plan, bytes);
        }
        last = cc__plan_add(plan, move);
        partial = sum;
    }
    if (number > 0) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = member_of(input, number - reach),
                                      .after = last,
                                      .bytes = bytes,
                                      .src = partial});
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}
