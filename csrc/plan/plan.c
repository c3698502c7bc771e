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
#define OUTPUT_BYTES_MAX (UINT64_C(1) << 60)

static const struct {
    cc_kind kind;
    cc_algorithm algorithm;
    cc__builder *build;
} BUILDERS[] = {
    {CC_ALL_REDUCE, CC_RING, cc__ring_all_reduce},
    {CC_ALL_REDUCE, CC_RECURSIVE_DOUBLING, cc__doubling_all_reduce},
    {CC_ALL_REDUCE, CC_DIRECT, cc__direct_all_reduce},
    {CC_BROADCAST, CC_RING, cc__ring_broadcast},
    {CC_BROADCAST, CC_DIRECT, cc__direct_broadcast},
    {CC_ALL_GATHER, CC_RING, cc__ring_all_gather},
    {CC_ALL_GATHER, CC_DIRECT, cc__direct_all_gather},
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

int cc__plan_supports(cc_kind kind, cc_algorithm algorithm) {
    if ((int)algorithm < CC_AUTO || algorithm > CC_DIRECT) {
        return 0;
    }
    if (is_votes_only(kind)) {
        return 1;
    }
    /* AUTO always stands for an algorithm that can do the kind, and DIRECT can do them all. */
    return find_builder(kind, algorithm == CC_AUTO ? CC_DIRECT : algorithm) != NULL;
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
    if (input->element_bytes == 0 || (input->kind == CC_BROADCAST && input->root >= input->size) ||
        (input->kind == CC_ALL_GATHER && input->ranks == NULL)) {
        return CC_INVALID;
    }
    uint64_t rows = input->size;
    for (uint32_t i = 0; input->kind == CC_ALL_GATHER && i < input->size; i++) {
        rows = input->ranks[i] >= rows ? (uint64_t)input->ranks[i] + 1 : rows;
    }
    if (input->count > OUTPUT_BYTES_MAX / rows / input->element_bytes) {
        return CC_NO_MEMORY;
    }
    return CC_OK;
}

/* One member: its input is the result. */
static void build_alone(const cc__plan_input *input, cc__plan *plan) {
    if (input->kind == CC_ALL_GATHER) {
        cc__gather_own_row(input, plan);
    } else {
        cc__plan_add(plan, (cc__move){.kind = CC__COPY,
                                      .flags = input->kind == CC_ALL_REDUCE ? CC__MOVE_FINISH : 0,
                                      .after = -1,
                                      .bytes = cc__whole_bytes(input),
                                      .src = cc__at(CC__IN, 0),
                                      .dst = cc__at(CC__OUT, 0)});
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
    if (is_votes_only(input->kind) || input->count == 0) {
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

/* In place, the input lies where row 0 of the output belongs. A member of another rank therefore
 * copies its input to its own row first, sends from there, and takes row 0 after that copy,
 * segment by segment, so that the ring still flows. Row 0 then needs a holding area. */
int32_t cc__gather_own_row(const cc__plan_input *input, cc__plan *plan) {
    uint64_t bytes = cc__whole_bytes(input);
    return cc__plan_add(plan, (cc__move){.kind = CC__COPY,
                                         .after = -1,
                                         .bytes = bytes,
                                         .src = cc__at(CC__IN, 0),
                                         .dst = cc__at(CC__OUT, input->ranks[input->me] * bytes)});
}

int32_t cc__gather_row(const cc__plan_input *input, cc__plan *plan, uint32_t peer, uint32_t from,
                       uint32_t slot, int32_t own_row) {
    uint64_t bytes = cc__whole_bytes(input);
    int over_input = input->ranks[from] == 0;
    return cc__plan_add(
        plan, (cc__move){.kind = CC__PLACE,
                         .peer = peer,
                         .slot = slot,
                         .after = over_input ? own_row : -1,
                         .bytes = bytes,
                         .dst = cc__at(CC__OUT, input->ranks[from] * bytes),
                         .hold = over_input ? cc__stage(plan, bytes) : cc__at(CC__IN, 0)});
}
