/* What plan.c and the algorithms share. A builder appends the moves of one member to an empty plan
 * and says whether the plan is eager; it is called with size >= 2 and arguments that plan.c has
 * checked. It need not look at errors: cc__plan_build notices a lack of memory by itself.
 *
 * `eager` must come out the same on every member, for a sender and its receiver have to agree on
 * how a message travels. So it is decided from what all know alike, never from a member's own
 * moves. For the same reason a message without bytes takes no slot, on either side. */
#ifndef CC_PLAN_BUILDERS_H
#define CC_PLAN_BUILDERS_H

#include "csrc/base/limits.h"
#include "csrc/plan/plan.h"

typedef void cc__builder(const cc__plan_input *input, cc__plan *plan);

cc__builder cc__ring_all_reduce, cc__ring_reduce, cc__ring_reduce_scatter;
cc__builder cc__ring_broadcast, cc__ring_all_gather;
cc__builder cc__doubling_all_reduce, cc__halving_all_reduce;
cc__builder cc__tree_broadcast, cc__tree_reduce;
cc__builder cc__direct_all_reduce, cc__direct_reduce, cc__direct_reduce_scatter;
cc__builder cc__direct_broadcast, cc__direct_gather, cc__direct_all_gather;
cc__builder cc__direct_scatter, cc__direct_all_to_all;

/* Local: src goes to OUT, where it does not lie there already. */
int32_t cc__plan_copy(cc__plan *plan, cc__place src, cc__place dst, uint64_t bytes);

/* Reserves `bytes` of STAGE. */
cc__place cc__stage(cc__plan *plan, uint64_t bytes);

/* The longest block. */
uint64_t cc__longest_block(const cc__plan_input *input);

/* Recursive doubling and halving run among a power of two of members, numbered in their order. Of
 * the others each hands its input to a neighbour before, and gets the total after. */
typedef struct cc__fold_up {
    uint32_t power, folded; /* members in the rounds; pairs of which one stays out */
    uint32_t number;        /* of this member in the rounds */
    int has_pair, stays_out;
} cc__fold_up;

cc__fold_up cc__fold_up_of(const cc__plan_input *input);
uint32_t cc__fold_up_member(const cc__fold_up *fold, uint32_t number);
/* All the moves of a member that stays out. */
void cc__fold_up_outside(const cc__plan_input *input, cc__plan *plan);

static inline cc__place cc__at(cc__area area, uint64_t offset) {
    return (cc__place){area, offset};
}

/* The whole of one member's input, of the kinds without blocks. */
static inline uint64_t cc__whole_bytes(const cc__plan_input *input) {
    return input->count * input->element_bytes;
}

/* The first element of one of `parts` equal chunks: count * chunk / parts, without overflow. */
static inline uint64_t cc__chunk_start(uint64_t count, uint32_t parts, uint32_t chunk) {
    return count / parts * chunk + count % parts * chunk / parts;
}

#endif
