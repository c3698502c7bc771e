/* Plans: the table of algorithms, the checks they all rely on, and the few moves they share.
 *
 * A builder is a straight loop over the steps of its algorithm that appends moves. Everything that
 * could go wrong is kept out of it: arguments are checked here before it runs, moves without bytes
 * are dropped by cc__plan_add, and running out of memory makes the plan remember that (capacity
 * FAILED) and ignore what is added later. */
#include "csrc/plan/builders.h"

#include <stdlib.h>
#include <string.h>

#define FAILED UINT32_MAX

/* Offsets and the sum of all holding areas stay far below 2^64 for lengths up to this. */
#define BUFFER_BYTES_MAX (UINT64_C(1) << 60)

static const struct {
    cc_kind kind;
    cc_algorithm algorithm;
    cc__builder *build;
} BUILDERS[] = {
    {CC_ALL_REDUCE, CC_RING, cc__ring_all_reduce},
    {CC_ALL_REDUCE, CC_RECURSIVE_DOUBLING, cc__doubling_all_reduce},
    {CC_ALL_REDUCE, CC_DIRECT, cc__direct_all_reduce},
    {CC_ALL_REDUCE, CC_HALVING_DOUBLING, cc__halving_all_reduce},
    {CC_BROADCAST, CC_RING, cc__ring_broadcast},
    {CC_BROADCAST, CC_DIRECT, cc__direct_broadcast},
    {CC_BROADCAST, CC_TREE, cc__tree_broadcast},
    {CC_ALL_GATHER, CC_RING, cc__ring_all_gather},
    {CC_ALL_GATHER, CC_DIRECT, cc__direct_all_gather},
    {CC_REDUCE, CC_RING, cc__ring_reduce},
    {CC_REDUCE, CC_DIRECT, cc__direct_reduce},
    {CC_REDUCE, CC_TREE, cc__tree_reduce},
    {CC_GATHER, CC_DIRECT, cc__direct_gather},
    {CC_SCATTER, CC_DIRECT, cc__direct_scatter},
    {CC_REDUCE_SCATTER, CC_RING, cc__ring_reduce_scatter},
    {CC_REDUCE_SCATTER, CC_DIRECT, cc__direct_reduce_scatter},
    {CC_ALL_TO_ALL, CC_DIRECT, cc__direct_all_to_all},
};

static cc__builder *find_builder(cc_kind kind, cc_algorithm algorithm) {
    for (size_t i = 0; i < sizeof BUILDERS / sizeof *BUILDERS; i++) {
        if (BUILDERS[i].kind == kind && BUILDERS[i].algorithm == algorithm) {
            return BUILDERS[i].build;
        }
    }
    return NULL;
}

/* These move no data: the votes that end every operation are all there is to them. */
static int is_votes_only(cc_kind kind) {
    return kind == CC_BARRIER || kind == CC_BOUNDARY;
}

static int has_root(cc_kind kind) {
    return kind == CC_BROADCAST || kind == CC_REDUCE || kind == CC_GATHER || kind == CC_SCATTER;
}

static int has_blocks(cc_kind kind) {
    return kind == CC_ALL_GATHER || kind == CC_GATHER || kind == CC_SCATTER ||
           kind == CC_REDUCE_SCATTER || kind == CC_ALL_TO_ALL;
}

static int reduces(cc_kind kind) {
    return kind == CC_ALL_REDUCE || kind == CC_REDUCE || kind == CC_REDUCE_SCATTER;
}

int cc__plan_supports(cc_kind kind, cc_algorithm algorithm) {
    if ((int)algorithm < CC_AUTO || algorithm > CC_TREE) {
        return 0;
    }
    if (is_votes_only(kind)) {
        return 1;
    }
    /* AUTO always stands for an algorithm that can do the kind, and DIRECT can do them all. */
    return find_builder(kind, algorithm == CC_AUTO ? CC_DIRECT : algorithm) != NULL;
}

static int blocks_fit(const cc__block *blocks, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        if (blocks[i].offset > BUFFER_BYTES_MAX || blocks[i].bytes > BUFFER_BYTES_MAX / size) {
            return 0;
        }
    }
    return 1;
}

static cc_status check(const cc__plan_input *input) {
    if (!cc__plan_supports(input->kind, input->algorithm)) {
        return CC_UNSUPPORTED;
    }
    if (input->algorithm == CC_AUTO || input->size == 0 || input->size > CC_MEMBERS_MAX ||
        input->me >= input->size) {
        return CC_INVALID;
    }
    if (is_votes_only(input->kind)) {
        return CC_OK;
    }
    if (input->element_bytes == 0 || (has_root(input->kind) && input->root >= input->size)) {
        return CC_INVALID;
    }
    if (!has_blocks(input->kind)) {
        uint64_t most = BUFFER_BYTES_MAX / input->size / input->element_bytes;
        return input->count > most ? CC_NO_MEMORY : CC_OK;
    }
    if (!input->blocks || (input->kind == CC_ALL_TO_ALL && !input->out_blocks)) {
        return CC_INVALID;
    }
    int fit = blocks_fit(input->blocks, input->size);
    if (input->kind == CC_ALL_TO_ALL) {
        fit = fit && blocks_fit(input->out_blocks, input->size);
    }
    return fit ? CC_OK : CC_NO_MEMORY;
}

/* One member: its input is the result. */
static void build_alone(const cc__plan_input *input, cc__plan *plan) {
    uint64_t in = 0, out = 0, bytes = cc__whole_bytes(input);
    if (has_blocks(input->kind)) {
        int gathers = input->kind == CC_ALL_GATHER || input->kind == CC_GATHER;
        bytes = input->blocks[0].bytes;
        in = gathers ? 0 : input->blocks[0].offset;
        out = gathers ? input->blocks[0].offset : 0;
        if (input->kind == CC_ALL_TO_ALL) {
            out = input->out_blocks[0].offset;
        }
    }
    int32_t index = cc__plan_copy(plan, cc__at(CC__IN, in), cc__at(CC__OUT, out), bytes);
    if (index >= 0 && reduces(input->kind)) {
        plan->moves[index].flags = CC__MOVE_FINISH;
    }
}

cc_status cc__plan_build(const cc__plan_input *input, cc__plan *plan) {
    memset(plan, 0, sizeof *plan);
    cc_status status = check(input);
    if (status != CC_OK) {
        return status;
    }
    plan->algorithm = input->algorithm;
    plan->eager = 1; /* nothing to send is nothing to wait with */
    if (is_votes_only(input->kind) || (!has_blocks(input->kind) && input->count == 0)) {
        return CC_OK;
    }
    if (input->size == 1) {
        build_alone(input, plan);
    } else {
        find_builder(input->kind, input->algorithm)(input, plan);
    }
    if (plan->capacity == FAILED) {
        cc__plan_free(plan);
        return CC_NO_MEMORY;
    }
    return CC_OK;
}

void cc__plan_free(cc__plan *plan) {
    free(plan->moves);
    memset(plan, 0, sizeof *plan);
}

int32_t cc__plan_add(cc__plan *plan, cc__move move) {
    if (move.bytes == 0 || plan->capacity == FAILED) {
        return -1;
    }
    if (plan->n_moves == plan->capacity) {
        uint32_t capacity = plan->capacity ? 2 * plan->capacity : 16;
        cc__move *moves = realloc(plan->moves, capacity * sizeof *moves);
        if (moves == NULL) {
            free(plan->moves);
            plan->moves = NULL;
            plan->n_moves = 0;
            plan->capacity = FAILED;
            return -1;
        }
        plan->moves = moves;
        plan->capacity = capacity;
    }
    plan->moves[plan->n_moves] = move;
    return (int32_t)plan->n_moves++;
}

cc__place cc__stage(cc__plan *plan, uint64_t bytes) {
    cc__place place = cc__at(CC__STAGE, plan->stage_bytes);
    /* Areas start on cache lines, so that two of them never share one. */
    plan->stage_bytes += (bytes + 63) & ~UINT64_C(63);
    return place;
}

int32_t cc__plan_copy(cc__plan *plan, cc__place src, cc__place dst, uint64_t bytes) {
    return cc__plan_add(
        plan, (cc__move){.kind = CC__COPY, .after = -1, .bytes = bytes, .src = src, .dst = dst});
}

uint64_t cc__longest_block(const cc__plan_input *input) {
    uint64_t longest = 0;
    for (uint32_t i = 0; i < input->size; i++) {
        longest = input->blocks[i].bytes > longest ? input->blocks[i].bytes : longest;
    }
    return longest;
}
