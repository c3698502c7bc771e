/* What plan.c and the algorithms share. A builder appends the moves of one member to an empty plan
 * and says whether the plan is eager; it is called with size >= 2 and arguments that plan.c has
 * checked. It need not look at errors: cc__plan_build notices a lack of memory by itself.
 *
 * `eager` must come out the same on every member, for a sender and its receiver have to agree on
 * how a message travels. So it is decided from the input alone, never from a member's own moves. */
#ifndef CC_PLAN_BUILDERS_H
#define CC_PLAN_BUILDERS_H

#include "csrc/base/limits.h"
#include "csrc/plan/plan.h"

typedef void cc__builder(const cc__plan_input *input, cc__plan *plan);

cc__builder cc__ring_all_reduce, cc__ring_broadcast, cc__ring_all_gather;
cc__builder cc__doubling_all_reduce;
cc__builder cc__direct_all_reduce, cc__direct_broadcast, cc__direct_all_gather;

/* The first moves of every all-gather: the own input goes to its row of the output. Returns the
 * index of that copy. See plan.c for why everything else comes after it. */
int32_t cc__gather_own_row(const cc__plan_input *input, cc__plan *plan);

/* Appends the receive of member `from`'s row in an all-gather, after `own_row` where it must be. */
int32_t cc__gather_row(const cc__plan_input *input, cc__plan *plan, uint32_t peer, uint32_t from,
                       uint32_t slot, int32_t own_row);

/* Reserves `bytes` of STAGE. */
cc__place cc__stage(cc__plan *plan, uint64_t bytes);

static inline cc__place cc__at(cc__area area, uint64_t offset) {
    return (cc__place){area, offset};
}

/* The whole of one member's input: the bytes of a message that is not cut into chunks. */
static inline uint64_t cc__whole_bytes(const cc__plan_input *input) {
    return input->count * input->element_bytes;
}

#endif
