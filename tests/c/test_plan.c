/* Plans compute what they promise, for every number of members and awkward lengths.
 *
 * Method: build the plans of all members and carry them out in a small simulated world
 * (plan_world.h), one segment at a time in a random order. Elements are 64-bit values cut to the
 * element's width; the operator is either a sum or a hash that neither commutes nor associates, so
 * a wrong order of operands, a lost or doubled input, and a byte that was overwritten before it was
 * read all change the result. Expected values come from the definitions (left fold, ring fold,
 * tree), not from plans. */
#include "tests/c/plan_world_build.h"

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

/* Members are folded in pairs until a power of two is left, then halves: neighbours first, or the
 * first half with the second. */
static uint64_t fold_halves(const cc__plan_input *input, uint64_t index, int neighbours) {
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
    for (width /= 2; width > 0; width /= 2) {
        for (uint32_t i = 0; i < width; i++) {
            level[i] = neighbours ? combine(level[2 * i], level[2 * i + 1])
                                  : combine(level[i], level[i + width]);
        }
    }
    return level[0];
}

/* Numbered from the root on, each adds what its children at distance 1, 2, 4, ... have. */
static uint64_t fold_binomial(const cc__plan_input *input, uint64_t index) {
    uint64_t partial[MEMBERS];
    for (uint32_t a = 0; a < input->size; a++) {
        partial[a] = input_of((a + input->root) % input->size, index);
    }
    for (uint32_t distance = 1; distance < input->size; distance *= 2) {
        for (uint32_t a = 0; a + distance < input->size; a += 2 * distance) {
            partial[a] = combine(partial[a], partial[a + distance]);
        }
    }
    return partial[0];
}

/* The total of element `index` of the inputs, which lies in the block of `owner`. */
static uint64_t expected_total(const cc__plan_input *input, uint32_t owner, uint64_t index) {
    uint32_t first = input->kind == CC_REDUCE           ? input->root + 1
                     : input->kind == CC_REDUCE_SCATTER ? owner + 1
                                                        : chunk_of(input, index);
    switch (input->algorithm) {
    case CC_RING: return finish(fold_around(input, first % input->size, index));
    case CC_RECURSIVE_DOUBLING: return finish(fold_halves(input, index, 1));
    case CC_HALVING_DOUBLING: return finish(fold_halves(input, index, 0));
    case CC_TREE: return finish(fold_binomial(input, index));
    default: return finish(fold_around(input, 0, index));
    }
}

static uint64_t start_of(const world *w, const cc__block *block) {
    return block->offset / w->input.element_bytes;
}

/* What `me` has in OUT at the end, written over what it had at the start. */
static void expect_output(const world *w, uint32_t me, uint64_t *out) {
    const member *m = &w->members[me];
    const cc__plan_input *input = &w->input;
    const uint32_t root = input->root;
    for (uint64_t i = 0; i < m->elements[CC__OUT] && !has_blocks(input->kind); i++) {
        out[i] = input->kind == CC_BROADCAST ? input_of(root, i) : expected_total(input, 0, i);
    }
    for (uint64_t i = 0; i < m->elements[CC__OUT]; i++) {
        uint64_t at = start_of(w, &m->in_blocks[me]) + i;
        if (input->kind == CC_SCATTER) {
            out[i] = input_of(root, at);
        } else if (input->kind == CC_REDUCE_SCATTER) {
            out[i] = expected_total(input, me, at);
        }
    }
    int gathers = input->kind == CC_ALL_GATHER || input->kind == CC_GATHER;
    for (uint32_t b = 0; b < input->size && m->elements[CC__OUT] > 0; b++) {
        for (uint64_t i = 0; gathers && i < length_of(w, 0, b); i++) {
            out[start_of(w, &m->in_blocks[b]) + i] = input_of(b, i);
        }
        for (uint64_t i = 0; input->kind == CC_ALL_TO_ALL && i < length_of(w, b, me); i++) {
            uint64_t there = start_of(w, &w->members[b].in_blocks[me]);
            out[start_of(w, &m->out_blocks[b]) + i] = input_of(b, there + i);
        }
    }
}

static void check_results(world *w) {
    for (uint32_t a = 0; a < w->input.size; a++) {
        member *m = &w->members[a];
        expect_output(w, a, m->before);
        for (uint64_t i = 0; i < m->elements[CC__OUT]; i++) {
            CHECK_EQ(m->area[CC__OUT][i], m->before[i]);
        }
        for (uint64_t i = 0; i < m->elements[CC__IN]; i++) {
            int64_t out = (int64_t)i - m->shift;
            int overwritten = w->in_place && out >= 0 && out < (int64_t)m->elements[CC__OUT];
            CHECK_EQ(m->readers[i], 0);
            CHECK(overwritten || m->area[CC__IN][i] == input_of(a, i));
        }
    }
}

/* ---- the tests ------------------------------------------------------------------------------ */

static int passed;

static void run_case(cc__plan_input input, int in_place, enum strategy strategy) {
    input.root = random_below(input.size);
    mask = UINT64_MAX >> (64 - 8 * input.element_bytes);
    op = (int)random_below(OPS);
    uint64_t few = input.count / 6 + 1;
    world *w = allocate(1, sizeof *w);
    w->input = input;
    w->in_place = in_place && input.kind != CC_ALL_TO_ALL;
    w->segment = input.count < 40 ? 1 + random_below(20) : few + random_below((uint32_t)few);
    int uneven = random_below(2);
    for (uint32_t a = 0; a < input.size; a++) {
        w->gaps[a] = random_below(4) == 0 ? random_below(3) : 0;
        for (uint32_t b = 0; b < input.size; b++) {
            w->lengths[a][b] = uneven ? random_below((uint32_t)input.count + 1) : input.count;
        }
    }
    w->input.uneven = uneven;
    prepare(w);
    run(w, strategy);
    check_results(w);
    discard(w);
    free(w);
}

static void test_results(cc_kind kind, cc_algorithm algorithm) {
    for (uint32_t size = 1; size <= MEMBERS; size++) {
        const uint64_t long_one = has_blocks(kind) ? 4099 / size : 4099; /* of each block */
        const uint64_t counts[] = {0, 1, 2, size - 1, size, size + 1, 1000 / size, long_one};
        for (uint32_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            /* Every width and order for the small ones; two cases will do for the others. */
            const int is_small = counts[c] < 100 && size <= 9;
            const int orders = is_small ? STRATEGIES : 1;
            for (uint32_t width = 0; width < (is_small ? 3 : 1); width++) {
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
    for (int algorithm = CC_RING; algorithm <= CC_TREE; algorithm++) {
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

static cc_algorithm choose(uint64_t latency_ns, uint64_t bytes_per_s, cc_kind kind, uint32_t size,
                           uint64_t bytes) {
    const cc_network network = {latency_ns, bytes_per_s};
    return cc__plan_choose(&network, kind, size, bytes);
}

/* What AUTO stands for can always do the job, and is the ring from some length on. */
static void test_choice(void) {
    for (int kind = CC_ALL_REDUCE; kind <= CC_ALL_TO_ALL; kind++) {
        CHECK(cc__plan_supports((cc_kind)kind, CC_AUTO));
        for (uint32_t size = 0; size <= CC_MEMBERS_MAX; size += 1 + size / 3) {
            for (uint64_t latency = 0; latency < UINT64_MAX / 300; latency = 200 * latency + 1) {
                for (uint64_t bytes = 0; bytes < UINT64_MAX / 3; bytes = 2 * bytes + 1) {
                    cc_algorithm chosen = choose(latency, latency, (cc_kind)kind, size, bytes);
                    CHECK(chosen != CC_AUTO && cc__plan_supports((cc_kind)kind, chosen));
                }
            }
        }
    }
    CHECK(!cc__plan_supports(CC_ALL_REDUCE, (cc_algorithm)99));
    CHECK(!cc__plan_supports(CC_BROADCAST, CC_RECURSIVE_DOUBLING));
    passed++;
}

/* Latency favours few steps, scarce bandwidth favours few bytes: each flips the choice. */
static void test_choice_follows_the_network(void) {
    const uint64_t us = 1000, ms = 1000 * us, mb = 1000000, gb = 1000 * mb;
    CHECK_EQ(choose(0, 0, CC_ALL_REDUCE, 8, 256), CC_RECURSIVE_DOUBLING);
    CHECK_EQ(choose(0, 0, CC_ALL_REDUCE, 8, 64 * mb), CC_RING);
    CHECK_EQ(choose(0, 0, CC_ALL_GATHER, 4, 64 * mb), CC_RING);
    CHECK_EQ(choose(0, 0, CC_BROADCAST, 4, 64 * mb), CC_RING);
    /* The same call, as latency rises: pipelines lose to logarithmic steps, those to one. */
    CHECK_EQ(choose(20 * us, gb, CC_ALL_REDUCE, 8, 4 * mb), CC_RING);
    CHECK_EQ(choose(1 * ms, gb, CC_ALL_REDUCE, 8, 4 * mb), CC_HALVING_DOUBLING);
    CHECK_EQ(choose(200 * ms, gb, CC_ALL_REDUCE, 8, 4 * mb), CC_DIRECT);
    CHECK_EQ(choose(200 * ms, 20 * gb, CC_BROADCAST, 8, 4 * mb), CC_DIRECT);
    /* The same call, as bandwidth falls: few steps lose to few bytes. */
    CHECK_EQ(choose(50 * us, 10 * gb, CC_ALL_REDUCE, 8, 8192), CC_RECURSIVE_DOUBLING);
    CHECK_EQ(choose(50 * us, 10 * mb, CC_ALL_REDUCE, 8, 8192), CC_HALVING_DOUBLING);
    CHECK_EQ(choose(1 * ms, gb, CC_BROADCAST, 8, 65536), CC_DIRECT);
    CHECK_EQ(choose(1 * ms, 10 * mb, CC_BROADCAST, 8, 65536), CC_TREE);
    CHECK_EQ(choose(1 * ms, mb, CC_BROADCAST, 8, 4 * mb), CC_RING);
    passed++;
}

static void test_names(void) {
    const size_t bytes[] = {[CC_FLOAT32] = 4,  [CC_FLOAT64] = 8, [CC_INT32] = 4,  [CC_INT64] = 8,
                            [CC_BFLOAT16] = 2, [CC_FLOAT16] = 2, [CC_INT8] = 1,   [CC_INT16] = 2,
                            [CC_UINT8] = 1,    [CC_UINT16] = 2,  [CC_UINT32] = 4, [CC_UINT64] = 8,
                            [CC_BOOL] = 1};
    for (int dtype = 1; dtype <= CC_BOOL; dtype++) {
        CHECK_EQ(cc_dtype_bytes((cc_dtype)dtype), bytes[dtype]);
    }
    CHECK_EQ(cc_dtype_bytes((cc_dtype)(CC_BOOL + 1)), 0);
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
    test_choice_follows_the_network();
    test_names();
    test_ring_bytes();
    for (int kind = CC_ALL_REDUCE; kind <= CC_ALL_TO_ALL; kind++) {
        for (int algorithm = CC_RING; algorithm <= CC_TREE; algorithm++) {
            int moves_data = kind != CC_BARRIER && kind != CC_BOUNDARY;
            if (moves_data && cc__plan_supports((cc_kind)kind, (cc_algorithm)algorithm)) {
                test_results((cc_kind)kind, (cc_algorithm)algorithm);
            }
        }
    }
    printf("test_plan: %d passed, 0 failed\n", passed);
    return 0;
}
