/* Plans compute what they promise, for every number of members and awkward lengths.
 *
 * Method: build the plans of all members and carry them out in a small simulated world
 * (plan_world.h), one segment at a time in a random order. Elements are 64-bit values cut to the
 * element's width; the operator is either a sum or a hash that neither commutes nor associates, so
 * a wrong order of operands, a lost or doubled input, and a byte that was overwritten before it was
 * read all change the result. Expected values come from the definitions (left fold, ring fold,
 * tree), not from plans. */
#include "tests/c/plan_world.h"

#include <inttypes.h>
#include <string.h>

/* ---- what the results must be --------------------------------------------------------------- */

/* The chunk of the ring that an element belongs to: chunk c starts at floor(count * c / size). */
static uint32_t chunk_of(const cc__plan_input *input, uint64_t index) {
    uint32_t chunk = 0;
    while (input->count * (chunk + 1) / input->size <= index) {
        chunk++;
    }
    return chunk;
}

static uint64_t fold_around(const cc__plan_input *input, uint32_t first, uint64_t index) {
    uint64_t total = input_of(first, index);
    for (uint32_t k = 1; k < input->size; k++) {
        total = combine(total, input_of((first + k) % input->size, index));
    }
    return total;
}

static uint64_t fold_tree(const cc__plan_input *input, uint64_t index) {
    uint64_t level[MEMBERS];
    uint32_t width = 1, n = 0;
    while (2 * width <= input->size) {
        width *= 2;
    }
    for (uint32_t a = 0; a < input->size; n++) { /* the first members pair up until 2^p are left */
        level[n] = input_of(a, index);
        if (n < input->size - width) {
            level[n] = combine(level[n], input_of(a + 1, index));
            a++;
        }
        a++;
    }
    CHECK_EQ(n, width);
    for (; width > 1; width /= 2) {
        for (uint32_t i = 0; i < width / 2; i++) {
            level[i] = combine(level[2 * i], level[2 * i + 1]);
        }
    }
    return level[0];
}

static uint64_t expected_total(const cc__plan_input *input, uint64_t index) {
    if (op == OP_SUM) {
        uint64_t total = 0;
        for (uint32_t a = 0; a < input->size; a++) {
            total += input_of(a, index);
        }
        return finish(total & mask);
    }
    switch (input->algorithm) {
    case CC_RING: return finish(fold_around(input, chunk_of(input, index), index));
    case CC_RECURSIVE_DOUBLING: return finish(fold_tree(input, index));
    default: return finish(fold_around(input, 0, index));
    }
}

static void check_results(world *w, uint32_t rows) {
    const cc__plan_input *input = &w->input;
    uint64_t *expected = allocate(rows * input->count, sizeof *expected);
    for (uint64_t i = 0; i < rows * input->count; i++) {
        expected[i] = POISON;
    }
    for (uint64_t i = 0; i < input->count; i++) {
        if (input->kind == CC_ALL_REDUCE) {
            expected[i] = expected_total(input, i);
        } else if (input->kind == CC_BROADCAST) {
            expected[i] = input_of(input->root, i);
        }
        for (uint32_t a = 0; input->kind == CC_ALL_GATHER && a < input->size; a++) {
            expected[input->ranks[a] * input->count + i] = input_of(a, i);
        }
    }
    int row_0_is_a_hole = input->kind == CC_ALL_GATHER && expected[0] == POISON;
    for (uint32_t a = 0; a < input->size; a++) {
        const member *m = &w->members[a];
        for (uint64_t i = 0; i < m->elements[CC__OUT]; i++) {
            /* Rows of absent ranks are not the plan's: it must leave them alone. */
            int leftover = w->in_place && row_0_is_a_hole && i < input->count;
            CHECK_EQ(m->area[CC__OUT][i], leftover ? input_of(a, i) : expected[i]);
        }
        for (uint64_t i = 0; i < input->count; i++) {
            CHECK_EQ(m->readers[i], 0);
            CHECK(w->in_place || m->area[CC__IN][i] == input_of(a, i));
        }
    }
    free(expected);
}

/* ---- the tests ------------------------------------------------------------------------------ */

static int passed;

static void run_case(cc__plan_input input, int in_place, enum strategy strategy) {
    uint32_t ranks[MEMBERS], rows = 1;
    if (input.kind == CC_ALL_GATHER) { /* ascending, with holes now and then */
        uint32_t next = random_below(4) == 0;
        for (uint32_t a = 0; a < input.size; a++) {
            ranks[a] = next;
            next += 1 + (random_below(4) == 0);
        }
        rows = next;
        input.ranks = ranks;
    }
    input.root = random_below(input.size);
    mask = UINT64_MAX >> (64 - 8 * input.element_bytes);
    op = (int)random_below(OPS);
    uint64_t few = input.count / 6 + 1;
    world w = {.input = input, .in_place = in_place};
    w.segment = input.count < 40 ? 1 + random_below(20) : few + random_below((uint32_t)few);
    prepare(&w, rows);
    run(&w, strategy);
    check_results(&w, rows);
    discard(&w);
}

static void test_results(cc_kind kind, cc_algorithm algorithm) {
    for (uint32_t size = 1; size <= MEMBERS; size++) {
        const uint64_t counts[] = {0, 1, 2, size - 1, size, size + 1, 1000, 4099};
        for (uint32_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            /* Every width and order for the short ones; two cases will do for the long ones. */
            const int orders = counts[c] < 100 ? STRATEGIES : 1;
            for (uint32_t width = 0; width < (counts[c] < 100 ? 3 : 1); width++) {
                for (int variant = 0; variant < 2 * orders; variant++) {
                    cc__plan_input input = {.kind = kind,
                                            .algorithm = algorithm,
                                            .size = size,
                                            .count = counts[c],
                                            .element_bytes = 2u << (c + width + size) % 3};
                    int strategy = orders == 1 ? (int)random_below(STRATEGIES) : variant / 2;
                    run_case(input, variant % 2, (enum strategy)strategy);
                }
            }
        }
    }
    passed++;
}

/* The ring sends the least there is: 2 (m - 1) / m of the vector from every member, to within the
 * one element by which each of the two chunks left out may differ from the mean. */
static void test_ring_bytes(void) {
    for (uint32_t size = 2; size <= MEMBERS; size++) {
        for (uint32_t me = 0; me < size; me++) {
            cc__plan_input input = {.kind = CC_ALL_REDUCE,
                                    .algorithm = CC_RING,
                                    .size = size,
                                    .me = me,
                                    .count = 4099,
                                    .element_bytes = 4};
            cc__plan plan;
            CHECK_EQ(cc__plan_build(&input, &plan), CC_OK);
            double sent = 0, bound = 2.0 * (size - 1) / size * 4099 * 4;
            for (uint32_t i = 0; i < plan.n_moves; i++) {
                sent += plan.moves[i].kind == CC__SEND ? (double)plan.moves[i].bytes : 0;
                CHECK(plan.moves[i].kind == CC__SEND || plan.moves[i].hold.area == CC__IN);
            }
            CHECK(sent >= bound - 2 * 4 && sent <= bound + 2 * 4);
            CHECK_EQ(plan.stage_bytes, 0);
            cc__plan_free(&plan);
        }
    }
    passed++;
}

static void test_votes_only(void) {
    for (int algorithm = CC_RING; algorithm <= CC_DIRECT; algorithm++) {
        for (int kind = CC_BARRIER; kind <= CC_BOUNDARY; kind++) {
            cc__plan_input input = {
                .kind = (cc_kind)kind, .algorithm = (cc_algorithm)algorithm, .size = 3};
            cc__plan plan;
            CHECK_EQ(cc__plan_build(&input, &plan), CC_OK);
            CHECK_EQ(plan.n_moves, 0);
            CHECK(plan.eager);
            cc__plan_free(&plan);
        }
    }
    passed++;
}

static void refuse(cc__plan_input input, cc_status status) {
    cc__plan plan;
    CHECK_EQ(cc__plan_build(&input, &plan), status);
    CHECK(plan.moves == NULL && plan.n_moves == 0 && plan.stage_bytes == 0);
}

static void test_bad_input(void) {
    const cc__plan_input good = {
        .kind = CC_ALL_REDUCE, .algorithm = CC_RING, .size = 4, .count = 8, .element_bytes = 4};
    cc__plan_input bad = good;
    bad.kind = CC_BROADCAST, bad.algorithm = CC_RECURSIVE_DOUBLING, refuse(bad, CC_UNSUPPORTED);
    bad.kind = CC_ALL_GATHER, refuse(bad, CC_UNSUPPORTED);
    bad = good, bad.kind = (cc_kind)99, refuse(bad, CC_UNSUPPORTED);
    bad = good, bad.algorithm = (cc_algorithm)99, refuse(bad, CC_UNSUPPORTED);
    bad.kind = CC_BARRIER, refuse(bad, CC_UNSUPPORTED);
    bad = good, bad.algorithm = CC_AUTO, refuse(bad, CC_INVALID);
    bad = good, bad.size = 0, refuse(bad, CC_INVALID);
    bad = good, bad.me = 4, refuse(bad, CC_INVALID);
    bad = good, bad.size = CC_MEMBERS_MAX + 1, refuse(bad, CC_INVALID);
    bad = good, bad.element_bytes = 0, refuse(bad, CC_INVALID);
    bad = good, bad.kind = CC_BROADCAST, bad.root = 4;
    refuse(bad, CC_INVALID);
    bad = good, bad.kind = CC_ALL_GATHER, refuse(bad, CC_INVALID);
    bad = good, bad.count = UINT64_MAX, refuse(bad, CC_NO_MEMORY);
    bad.count = UINT64_MAX / 4 + 2, refuse(bad, CC_NO_MEMORY); /* times 4 it would wrap to 4 */
    passed++;
}

/* What AUTO stands for can always do the job, and is the ring from some length on. */
static void test_choice(void) {
    for (int kind = CC_ALL_REDUCE; kind <= CC_BOUNDARY; kind++) {
        CHECK(cc__plan_supports((cc_kind)kind, CC_AUTO));
        for (uint32_t size = 0; size <= CC_MEMBERS_MAX; size += 1 + size / 3) {
            int in_ring = 0;
            for (uint64_t count = 0; count < UINT64_MAX / 3; count = 2 * count + 1) {
                cc_algorithm chosen = cc__plan_choose((cc_kind)kind, size, count, 4);
                CHECK(chosen != CC_AUTO && cc__plan_supports((cc_kind)kind, chosen));
                CHECK(!in_ring || chosen == CC_RING);
                in_ring = chosen == CC_RING;
            }
        }
    }
    CHECK_EQ(cc__plan_choose(CC_ALL_REDUCE, 3, 256, 4), CC_DIRECT);
    CHECK_EQ(cc__plan_choose(CC_ALL_REDUCE, 4, 256, 4), CC_RECURSIVE_DOUBLING);
    CHECK_EQ(cc__plan_choose(CC_ALL_REDUCE, 64, 256, 4), CC_RECURSIVE_DOUBLING);
    CHECK_EQ(cc__plan_choose(CC_ALL_REDUCE, 4, 1 << 24, 4), CC_RING);
    CHECK_EQ(cc__plan_choose(CC_BROADCAST, 4, 256, 4), CC_DIRECT);
    CHECK_EQ(cc__plan_choose(CC_BROADCAST, 4, 1 << 24, 4), CC_RING);
    CHECK_EQ(cc__plan_choose(CC_ALL_GATHER, 4, 1 << 24, 4), CC_RING);
    CHECK(!cc__plan_supports(CC_ALL_REDUCE, (cc_algorithm)99));
    CHECK(!cc__plan_supports(CC_BROADCAST, CC_RECURSIVE_DOUBLING));
    passed++;
}

static void test_names(void) {
    CHECK_EQ(cc_dtype_bytes(CC_FLOAT32), 4);
    CHECK_EQ(cc_dtype_bytes(CC_FLOAT64), 8);
    CHECK_EQ(cc_dtype_bytes(CC_INT32), 4);
    CHECK_EQ(cc_dtype_bytes(CC_INT64), 8);
    CHECK_EQ(cc_dtype_bytes(CC_BFLOAT16), 2);
    CHECK_EQ(cc_dtype_bytes((cc_dtype)0), 0);
    for (int a = CC_OK; a <= CC_SYSTEM + 1; a++) { /* every status has a text of its own */
        for (int b = CC_OK; b < a; b++) {
            CHECK(strcmp(cc_status_text((cc_status)a), cc_status_text((cc_status)b)) != 0);
        }
    }
    passed++;
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) | 1 : seed;
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    test_bad_input();
    test_votes_only();
    test_choice();
    test_names();
    test_ring_bytes();
    test_results(CC_ALL_REDUCE, CC_RING);
    test_results(CC_ALL_REDUCE, CC_RECURSIVE_DOUBLING);
    test_results(CC_ALL_REDUCE, CC_DIRECT);
    test_results(CC_BROADCAST, CC_RING);
    test_results(CC_BROADCAST, CC_DIRECT);
    test_results(CC_ALL_GATHER, CC_RING);
    test_results(CC_ALL_GATHER, CC_DIRECT);
    printf("test_plan: %d passed, 0 failed\n", passed);
    return 0;
}
