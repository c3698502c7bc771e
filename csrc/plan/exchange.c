/* Direct exchange: everybody sends to everybody in one step. One message latency, m - 1 messages
 * per member: best for short messages and few members.
 *
 * All-reduce folds the inputs from the left in member order, ((x0 + x1) + x2) + ..., the same
 * expression on every member whatever arrives first. The partial sum is kept in STAGE, because
 * in place the output is still being sent; the last reduction waits for that (a fence). */
#include "csrc/plan/builders.h"

/* Sends the same bytes to all others. Starting behind oneself spreads the load: in any moment the
 * members aim at different receivers. */
static void send_to_all(const cc__plan_input *input, cc__plan *plan, cc__place src, int32_t after) {
    for (uint32_t i = 1; i < input->size; i++) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = (input->me + i) % input->size,
                                      .after = after,
                                      .bytes = cc__whole_bytes(input),
                                      .src = src});
    }
}

/* What the fold has come to: where the partial result is and which move made it. */
typedef struct fold {
    cc__place partial, stage;
    int32_t last;
} fold;

/* Folds member `index` in: its data comes from it, or is our own input. */
static void fold_in(const cc__plan_input *input, cc__plan *plan, fold *fold, uint32_t index) {
    const uint64_t bytes = cc__whole_bytes(input);
    const int is_last = index == input->size - 1;
    cc__move move = {.kind = CC__REDUCE,
                     .flags = is_last ? CC__MOVE_FENCE | CC__MOVE_FINISH : 0,
                     .peer = index,
                     .after = fold->last,
                     .bytes = bytes,
                     .src = fold->partial,
                     .dst = is_last ? cc__at(CC__OUT, 0) : fold->stage};
    if (index == input->me && index == 1) {
        /* What came first is the very first operand: nothing is folded yet. */
        move.flags |= CC__MOVE_INCOMING_FIRST;
        move.peer = 0;
        move.src = cc__at(CC__IN, 0);
    } else if (index == input->me) {
        move.kind = CC__LOCAL;
        move.src2 = cc__at(CC__IN, 0);
    }
    if (move.kind == CC__REDUCE && (move.after >= 0 || is_last)) {
        move.hold = cc__stage(plan, bytes);
    }
    fold->last = cc__plan_add(plan, move);
    fold->partial = move.dst;
}

void cc__direct_all_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    send_to_all(input, plan, cc__at(CC__IN, 0), -1);

    fold fold = {.partial = cc__at(CC__IN, 0), .last = -1};
    if (input->size > 2) {
        fold.stage = cc__stage(plan, bytes);
    }
    if (input->me > 1) {
        fold.last = cc__plan_add(
            plan,
            (cc__move){
                .kind = CC__PLACE, .peer = 0, .after = -1, .bytes = bytes, .dst = fold.stage});
        fold.partial = fold.stage;
    }
    for (uint32_t index = 1; index < input->size; index++) {
        fold_in(input, plan, &fold, index);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

void cc__direct_broadcast(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    if (input->me == input->root) {
        send_to_all(input, plan, cc__at(CC__IN, 0), -1);
        cc__plan_add(plan, (cc__move){.kind = CC__COPY,
                                      .after = -1,
                                      .bytes = bytes,
                                      .src = cc__at(CC__IN, 0),
                                      .dst = cc__at(CC__OUT, 0)});
    } else {
        cc__plan_add(plan, (cc__move){.kind = CC__PLACE,
                                      .peer = input->root,
                                      .after = -1,
                                      .bytes = bytes,
                                      .dst = cc__at(CC__OUT, 0)});
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

void cc__direct_all_gather(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    const int32_t own_row = cc__gather_own_row(input, plan);
    send_to_all(input, plan, cc__at(CC__OUT, input->ranks[input->me] * bytes), own_row);
    for (uint32_t i = 1; i < input->size; i++) {
        uint32_t from = (input->me + input->size - i) % input->size;
        cc__gather_row(input, plan, from, from, 0, own_row);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}
