/* The ring: every member sends to its successor and receives from its predecessor, so each link
 * carries the same load and nobody's bandwidth is shared. Best for long messages.
 *
 * All-reduce (Patarasuk & Yuan, 2009) cuts the vector into one chunk per member. In step t a
 * member sends chunk (me - t) and receives chunk (me - t - 1), both mod m. In the first m - 1 steps
 * (reduce-scatter) it adds its own input to what it receives; after them it owns the total of chunk
 * me + 1. In the other m - 1 (all-gather) it passes totals on. A chunk that comes in at step t goes
 * out at step t + 1, segment by segment, so the whole is one pipeline.
 *
 * In place it needs no fence: what is written over chunk c of this member is the reduction of it,
 * or its total, and no total of c exists before this member's share of it was sent and arrived.
 * Chunk c is summed in ring order starting at member c, by one member each, so all get its bits. */
#include "csrc/plan/builders.h"

static uint64_t chunk_offset(const cc__plan_input *input, uint32_t chunk) {
    return cc__chunk_start(input->count, input->size, chunk) * input->element_bytes;
}

void cc__ring_all_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint32_t size = input->size, steps = 2 * (size - 1);
    uint32_t sent = 0, received = 0;
    int32_t last = -1; /* the receive of the step before */

    for (uint32_t step = 0; step < steps; step++) {
        uint32_t out = (input->me + 2 * size - step) % size;
        uint32_t in = (input->me + 2 * size - step - 1) % size;
        uint64_t out_start = chunk_offset(input, out), out_end = chunk_offset(input, out + 1);
        uint64_t in_start = chunk_offset(input, in), in_end = chunk_offset(input, in + 1);

        int32_t send =
            cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                          .peer = (input->me + 1) % size,
                                          .slot = sent,
                                          .after = last,
                                          .bytes = out_end - out_start,
                                          .src = cc__at(step == 0 ? CC__IN : CC__OUT, out_start)});
        cc__move receive = {.kind = step < size - 1 ? CC__REDUCE : CC__PLACE,
                            .peer = (input->me + size - 1) % size,
                            .slot = received,
                            .after = -1,
                            .bytes = in_end - in_start,
                            .dst = cc__at(CC__OUT, in_start)};
        if (receive.kind == CC__REDUCE) {
            receive.flags = CC__MOVE_INCOMING_FIRST | (step == size - 2 ? CC__MOVE_FINISH : 0);
            receive.src = cc__at(CC__IN, in_start);
        }
        last = cc__plan_add(plan, receive);
        /* A chunk without elements is no message, on either side: numbers stay in step. */
        sent += send >= 0;
        received += last >= 0;
    }
    plan->eager = 0; /* two messages for each pair, or more */
}

/* The first half of the all-reduce, with blocks for chunks, shifted by one so that member r ends up
 * with block r: block c is summed in ring order from member c + 1 on. Partial sums are in STAGE, for
 * the input must stay as it is. In place, the own block is read only by the move that replaces it. */
void cc__ring_reduce_scatter(const cc__plan_input *input, cc__plan *plan) {
    const uint32_t size = input->size;
    uint32_t sent = 0, received = 0;
    int32_t last = -1;
    cc__place partial = cc__at(CC__IN, input->blocks[(input->me + size - 1) % size].offset);

    for (uint32_t step = 0; step < size - 1; step++) {
        const cc__block *out = &input->blocks[(input->me + 2 * size - step - 1) % size];
        const cc__block *in = &input->blocks[(input->me + 2 * size - step - 2) % size];
        const int is_last = step == size - 2;
        int32_t send = cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                                     .peer = (input->me + 1) % size,
                                                     .slot = sent,
                                                     .after = last,
                                                     .bytes = out->bytes,
                                                     .src = partial});
        partial = is_last ? cc__at(CC__OUT, 0) : cc__stage(plan, in->bytes);
        last = cc__plan_add(
            plan, (cc__move){.kind = CC__REDUCE,
                             .flags = CC__MOVE_INCOMING_FIRST | (is_last ? CC__MOVE_FINISH : 0),
                             .peer = (input->me + size - 1) % size,
                             .slot = received,
                             .after = -1,
                             .bytes = in->bytes,
                             .src = cc__at(CC__IN, in->offset),
                             .dst = partial});
        sent += send >= 0;
        received += last >= 0;
    }
    plan->eager = size == 2 && cc__longest_block(input) <= CC_EAGER_BYTES;
}

/* A chain that ends at the root: each member adds its own and passes it on, segment by segment. */
void cc__ring_reduce(const cc__plan_input *input, cc__plan *plan) {
    const uint32_t size = input->size;
    const uint64_t bytes = cc__whole_bytes(input);
    const uint32_t position = (input->me + size - input->root) % size;
    cc__place total = cc__at(CC__IN, 0);
    int32_t last = -1;

    if (position != 1) { /* the one behind the root begins */
        total = position == 0 ? cc__at(CC__OUT, 0) : cc__stage(plan, bytes);
        last = cc__plan_add(plan, (cc__move){.kind = CC__REDUCE,
                                             .flags = CC__MOVE_INCOMING_FIRST |
                                                      (position == 0 ? CC__MOVE_FINISH : 0),
                                             .peer = (input->me + size - 1) % size,
                                             .after = -1,
                                             .bytes = bytes,
                                             .src = cc__at(CC__IN, 0),
                                             .dst = total});
    }
    if (position != 0) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = (input->me + 1) % size,
                                      .after = last,
                                      .bytes = bytes,
                                      .src = total});
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

/* A chain from the root around the ring; a member forwards each segment when it has it. */
void cc__ring_broadcast(const cc__plan_input *input, cc__plan *plan) {
    const uint32_t size = input->size;
    const uint64_t bytes = cc__whole_bytes(input);
    const uint32_t position = (input->me + size - input->root) % size;
    int32_t received = -1;

    if (position > 0) {
        received = cc__plan_add(plan, (cc__move){.kind = CC__PLACE,
                                                 .peer = (input->me + size - 1) % size,
                                                 .after = -1,
                                                 .bytes = bytes,
                                                 .dst = cc__at(CC__OUT, 0)});
    }
    if (position < size - 1) {
        cc__plan_add(plan, (cc__move){.kind = CC__SEND,
                                      .peer = (input->me + 1) % size,
                                      .after = received,
                                      .bytes = bytes,
                                      .src = cc__at(position == 0 ? CC__IN : CC__OUT, 0)});
    }
    if (position == 0) {
        cc__plan_copy(plan, cc__at(CC__IN, 0), cc__at(CC__OUT, 0), bytes);
    }
    plan->eager = bytes <= CC_EAGER_BYTES;
}

/* In step t a member sends the block of member me - t and receives that of member me - t - 1. */
void cc__ring_all_gather(const cc__plan_input *input, cc__plan *plan) {
    const uint32_t size = input->size;
    const cc__block *own = &input->blocks[input->me];
    cc__plan_copy(plan, cc__at(CC__IN, 0), cc__at(CC__OUT, own->offset), own->bytes);
    uint32_t sent = 0, received = 0;
    int32_t last = -1;

    for (uint32_t step = 0; step < size - 1; step++) {
        const cc__block *out = &input->blocks[(input->me + size - step) % size];
        const cc__block *in = &input->blocks[(input->me + size - step - 1) % size];
        int32_t send = cc__plan_add(
            plan, (cc__move){.kind = CC__SEND,
                             .peer = (input->me + 1) % size,
                             .slot = sent,
                             .after = last,
                             .bytes = out->bytes,
                             .src = step == 0 ? cc__at(CC__IN, 0) : cc__at(CC__OUT, out->offset)});
        last = cc__plan_add(plan, (cc__move){.kind = CC__PLACE,
                                             .peer = (input->me + size - 1) % size,
                                             .slot = received,
                                             .after = -1,
                                             .bytes = in->bytes,
                                             .dst = cc__at(CC__OUT, in->offset)});
        sent += send >= 0;
        received += last >= 0;
    }
    plan->eager = size == 2 && cc__longest_block(input) <= CC_EAGER_BYTES;
}
