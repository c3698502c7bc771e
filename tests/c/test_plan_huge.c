/* Plans of buffers beyond 4 GiB: no offset and no length is cut to 32 bits.
 *
 * Method: a plan holds places and lengths, not data, so a huge one costs no more than a small one. A
 * plan whose lengths all divide evenly is built twice, the second time for FACTOR times as much:
 * the moves must be the same, with every place and length FACTOR times as large. (test_plan carries
 * out the small ones and checks what they compute.) Then awkward lengths, which no such comparison
 * has: what one member sends another expects, and every byte lies in its buffer. */
#include "csrc/plan/plan.h"
#include "tests/c/check.h"

#include <stdint.h>
#include <string.h>

#define MEMBERS 9u
#define ELEMENT 4u
#define COUNT                                                                                      \
    (2520u * 64u) /* divides by 1 to 9 and by powers of two; a part is too long for eager */
#define FACTOR (UINT64_C(1) << 21)
#define AWKWARD ((UINT64_C(1) << 33) + 12345)

static int passed;

static int has_blocks(cc_kind kind) {
    return kind == CC_ALL_GATHER || kind == CC_GATHER || kind == CC_SCATTER ||
           kind == CC_REDUCE_SCATTER || kind == CC_ALL_TO_ALL;
}

/* Members' blocks lie one behind the other; the longest is as long as all of a kind without. */
static cc__plan build(cc__plan_input input, uint64_t count) {
    cc__block in[MEMBERS], out[MEMBERS];
    uint64_t in_end = 0, out_end = 0;
    for (uint32_t i = 0; i < input.size; i++) {
        int all_to_all = input.kind == CC_ALL_TO_ALL; /* i gives j so much: (i + 1)(j + 1) parts */
        uint64_t given = (uint64_t)(i + 1) * (all_to_all ? input.me + 1 : 1);
        in[i] = (cc__block){in_end, count * ELEMENT * given};
        out[i] = (cc__block){out_end, count * ELEMENT * given};
        in_end += in[i].bytes;
        out_end += out[i].bytes;
    }
    input.count = count;
    input.element_bytes = ELEMENT;
    input.blocks = in;
    input.out_blocks = out;
    cc__plan plan;
    CHECK_EQ(cc__plan_build(&input, &plan), CC_OK);
    return plan;
}

static void compare_places(cc__place small, cc__place huge) {
    CHECK_EQ(small.area, huge.area);
    CHECK(huge.offset == small.offset * FACTOR);
}

static uint64_t end_of(cc__place place, uint64_t bytes) {
    return place.offset + bytes;
}

/* Returns the largest offset seen. */
static uint64_t compare(const cc__plan *small, const cc__plan *huge) {
    uint64_t most = 0;
    CHECK_EQ(small->eager, 0);
    CHECK_EQ(huge->eager, 0);
    CHECK_EQ(small->n_moves, huge->n_moves);
    CHECK(huge->stage_bytes == small->stage_bytes * FACTOR);
    for (uint32_t i = 0; i < small->n_moves; i++) {
        const cc__move *a = &small->moves[i], *b = &huge->moves[i];
        CHECK(a->kind == b->kind && a->flags == b->flags && a->after == b->after);
        CHECK(a->peer == b->peer && a->slot == b->slot);
        CHECK(b->bytes == a->bytes * FACTOR);
        compare_places(a->src, b->src);
        compare_places(a->src2, b->src2);
        compare_places(a->dst, b->dst);
        compare_places(a->hold, b->hold);
        uint64_t end = end_of(b->kind == CC__SEND ? b->src : b->dst, b->bytes);
        most = end > most ? end : most;
    }
    return most;
}

static void test_scaled(cc__plan_input input) {
    for (input.size = 2; input.size <= MEMBERS; input.size++) {
        for (input.root = 0; input.root < input.size; input.root += input.size - 1) {
            uint64_t most = 0;
            for (input.me = 0; input.me < input.size; input.me++) {
                cc__plan small = build(input, COUNT), huge = build(input, COUNT * FACTOR);
                uint64_t seen = compare(&small, &huge);
                most = seen > most ? seen : most;
                cc__plan_free(&small);
                cc__plan_free(&huge);
            }
            CHECK(most > UINT64_C(1) << 36); /* it was huge indeed */
        }
    }
    passed++;
}

static int receives(const cc__move *move) {
    return move->kind == CC__PLACE || move->kind == CC__REDUCE;
}

/* What `plan` of member `me` sends, its peers receive. Returns the number of messages. */
static uint32_t pair_up(const cc__plan *plans, uint32_t me) {
    uint32_t sent = 0;
    for (uint32_t i = 0; i < plans[me].n_moves; i++) {
        const cc__move *move = &plans[me].moves[i];
        if (move->kind != CC__SEND) continue;
        const cc__plan *peer = &plans[move->peer];
        uint32_t found = 0;
        for (uint32_t j = 0; j < peer->n_moves; j++) {
            const cc__move *other = &peer->moves[j];
            if (!receives(other) || other->peer != me || other->slot != move->slot) continue;
            CHECK(other->bytes == move->bytes);
            found++;
        }
        CHECK_EQ(found, 1);
        sent++;
    }
    return sent;
}

/* Of kinds without blocks: all buffers are of AWKWARD elements. */
static void test_awkward(cc__plan_input input) {
    for (input.size = 2; input.size <= MEMBERS; input.size++) {
        cc__plan plans[MEMBERS];
        uint32_t sent = 0, received = 0;
        uint64_t reached = 0;
        input.root = input.size / 2;
        for (input.me = 0; input.me < input.size; input.me++) {
            plans[input.me] = build(input, AWKWARD);
        }
        for (uint32_t me = 0; me < input.size; me++) {
            sent += pair_up(plans, me);
            for (uint32_t i = 0; i < plans[me].n_moves; i++) {
                const cc__move *move = &plans[me].moves[i];
                const cc__place at = move->kind == CC__SEND ? move->src : move->dst;
                uint64_t end = end_of(at, move->bytes);
                received += (uint32_t)receives(move);
                CHECK_EQ(move->bytes % ELEMENT, 0);
                CHECK(end <= (at.area == CC__STAGE ? plans[me].stage_bytes : AWKWARD * ELEMENT));
                reached = end > reached && at.area != CC__STAGE ? end : reached;
            }
            CHECK(!plans[me].eager);
        }
        CHECK_EQ(sent, received);
        CHECK(reached == AWKWARD * ELEMENT); /* the last byte is in somebody's hands */
        for (uint32_t me = 0; me < input.size; me++) cc__plan_free(&plans[me]);
    }
    passed++;
}

int main(void) {
    for (int kind = CC_ALL_REDUCE; kind <= CC_ALL_TO_ALL; kind++) {
        for (int algorithm = CC_RING; algorithm <= CC_TREE; algorithm++) {
            cc__plan_input input = {.kind = (cc_kind)kind, .algorithm = (cc_algorithm)algorithm};
            int moves_data = kind != CC_BARRIER && kind != CC_BOUNDARY;
            if (!moves_data || !cc__plan_supports(input.kind, input.algorithm)) continue;
            test_scaled(input);
            if (!has_blocks(input.kind)) test_awkward(input);
        }
    }
    printf("test_plan_huge: %d passed, 0 failed\n", passed);
    return 0;
}
