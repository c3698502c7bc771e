/* Direct exchange: who has something for a peer sends it there, in one step. One message latency,
 * up to m - 1 messages per member: best for short messages and few members, and all there is for
 * kinds in which every pair has data of its own.
 *
 * Reductions fold the inputs from the left in member order, ((x0 + x1) + x2) + ..., the same
 * expression on every member whatever arrives first. The partial sum is kept in STAGE, because in
 * place the output may still be sent; what comes early waits in STAGE too. */
#include "csrc/plan/builders.h"

static void send_to(cc__plan *plan, uint32_t peer, cc__place src, uint64_t bytes) {
    cc__plan_add(
        plan, (cc__move){.kind = CC__SEND, .peer = peer, .after = -1, .bytes = bytes, .src = src});
}

static int32_t place_from(cc__plan *plan, uint32_t peer, cc__place dst, uint64_t bytes) {
    return cc__plan_add(
        plan, (cc__move){.kind = CC__PLACE, .peer = peer, .after = -1, .bytes = bytes, .dst = dst});
}

/* The i-th other member. Starting behind oneself spreads the load: in any moment the members aim at
 * different receivers. */
static uint32_t other(const cc__plan_input *input, uint32_t i) {
    return (input->me + i) % input->size;
}

static void send_to_all(const cc__plan_input *input, cc__plan *plan, uint64_t bytes) {
    for (uint32_t i = 1; i < input->size; i++) {
        send_to(plan, other(input, i), cc__at(CC__IN, 0), bytes);
    }
}

/* To each member its block. */
static void send_blocks(const cc__plan_input *input, cc__plan *plan) {
    for (uint32_t i = 1; i < input->size; i++) {
        const cc__block *block = &input->blocks[other(input, i)];
        send_to(plan, other(input, i), cc__at(CC__IN, block->offset), block->bytes);
    }
}

/* ---- reductions --------------------------------------------------------------------------- */

/* What the fold has come to: where the partial result is and which move made it. */
typedef struct fold {
    cc__place own, partial, stage;
    uint64_t bytes;
    uint32_t last_flags; /* of the move that makes the result */
    int32_t last;
} fold;

/* Folds member `index` in: its data comes from it, or is our own input. */
static void fold_in(const cc__plan_input *input, cc__plan *plan, fold *fold, uint32_t index) {
    const int is_last = index == input->size - 1;
    cc__move move = {.kind = CC__REDUCE,
                     .flags = is_last ? fold->last_flags : 0,
                     .peer = index,
                     .after = fold->last,
                     .bytes = fold->bytes,
                     .src = fold->partial,
                     .dst = is_last ? cc__at(CC__OUT, 0) : fold->stage};
    if (index == input->me && index == 1) {
        /* What came first is the very first operand: nothing is folded yet. */
        move.flags |= CC__MOVE_INCOMING_FIRST;
        move.peer = 0;
        move.src = fold->own;
    } else if (index == input->me) {
        move.kind = CC__LOCAL;
        move.src2 = fold->own;
    }
    if (move.kind == CC__REDUCE && (move.after >= 0 || (move.flags & CC__MOVE_FENCE))) {
        move.hold = cc__stage(plan, fold->bytes);
    }
    fold->last = cc__plan_add(plan, move);
    fold->partial = move.dst;
}

/* Folds what all members give, `own` being this one's, into OUT. With `fence` the result waits for
 * the sends before it. */
static void fold_all(const cc__plan_input *input, cc__plan *plan, cc__place own, uint64_t bytes,
                     int fence) {
    fold fold = {.own = own,
                 .partial = own,
                 .bytes = bytes,
                 .last_flags = CC__MOVE_FINISH | (fence ? CC__MOVE_FENCE : 0),
                 .last = -1};
    if (input->size > 2) {
        fold.stage = cc__stage(plan, bytes);
    }
    if (input->me > 1) {
        fold.last = place_from(plan, 0, fold.stage, bytes);
        fold.partial = fold.stage;
    }
    for (uint32_t index = 1; index < input->size; index++) {
        fold_in(input, plan, &fold, index);
    }
}

void cc__direct_all_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    send_to_all(input, plan, bytes);
    fold_all(input, plan, cc__at(CC__IN, 0), bytes, 1);
    plan->eager = bytes <= CC_EAGER_BYTES;
}

void cc__direct_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    if (input->me == input->root) {
        fold_all(input, plan, cc__at(CC__IN, 0), bytes, 0);
    } else {
        send_to(plan, input->root, cc__at(CC__IN, 0), bytes);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

void cc__direct_reduce_scatter(const cc__plan_input *input, cc__plan *plan) {
    const cc__block *own = &input->blocks[input->me];
    send_blocks(input, plan);
    /* In place, nobody is sent the own block: it may be overwritten at any time. */
    fold_all(input, plan, cc__at(CC__IN, own->offset), own->bytes, 0);
    plan->eager = cc__longest_block(input) <= CC_EAGER_BYTES;
}

/* ---- moves alone -------------------------------------------------------------------------- */

void cc__direct_broadcast(const cc__plan_input *input, cc__plan *plan) {
    const uint64_t bytes = cc__whole_bytes(input);
    if (input->me == input->root) {
        send_to_all(input, plan, bytes);
        cc__plan_copy(plan, cc__at(CC__IN, 0), cc__at(CC__OUT, 0), bytes);
    } else {
        place_from(plan, input->root, cc__at(CC__OUT, 0), bytes);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

static void place_all(const cc__plan_input *input, cc__plan *plan, const cc__block *blocks) {
    for (uint32_t i = 1; i < input->size; i++) {
        uint32_t from = other(input, input->size - i);
        place_from(plan, from, cc__at(CC__OUT, blocks[from].offset), blocks[from].bytes);
    }
}

void cc__direct_gather(const cc__plan_input *input, cc__plan *plan) {
    const cc__block *own = &input->blocks[input->me];
    if (input->me == input->root) {
        cc__plan_copy(plan, cc__at(CC__IN, 0), cc__at(CC__OUT, own->offset), own->bytes);
        place_all(input, plan, input->blocks);
    } else {
        send_to(plan, input->root, cc__at(CC__IN, 0), own->bytes);
    }
    plan->eager = cc__longest_block(input) <= CC_EAGER_BYTES;
}

void cc__direct_all_gather(const cc__plan_input *input, cc__plan *plan) {
    const cc__block *own = &input->blocks[input->me];
    cc__plan_copy(plan, cc__at(CC__IN, 0), cc__at(CC__OUT, own->offset), own->bytes);
    send_to_all(input, plan, own->bytes);
    place_all(input, plan, input->blocks);
    plan->eager = cc__longest_block(input) <= CC_EAGER_BYTES;
}

void cc__direct_scatter(const cc__plan_input *input, cc__plan *plan) {
    const cc__block *own = &input->blocks[input->me];
    if (input->me == input->root) {
        send_blocks(input, plan);
        cc__plan_copy(plan, cc__at(CC__IN, own->offset), cc__at(CC__OUT, 0), own->bytes);
    } else {
        place_from(plan, input->root, cc__at(CC__OUT, 0), own->bytes);
    }
    plan->eager = cc__longest_block(input) <= CC_EAGER_BYTES;
}

void cc__direct_all_to_all(const cc__plan_input *input, cc__plan *plan) {
    const cc__block *own = &input->blocks[input->me];
    uint64_t arriving = input->out_blocks[input->me].offset;
    send_blocks(input, plan);
    cc__plan_copy(plan, cc__at(CC__IN, own->offset), cc__at(CC__OUT, arriving), own->bytes);
    place_all(input, plan, input->out_blocks);
    plan->eager = !input->uneven && cc__longest_block(input) <= CC_EAGER_BYTES;
}
