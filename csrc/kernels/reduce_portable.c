/* The twin for every machine: what the baseline of the architecture can vectorise (SSE2, NEON). */
#include "csrc/kernels/reduce.h"

#include "csrc/kernels/reduce_body.h"

const cc__kernels *cc__kernels_portable(void) {
    return &TABLE;
}
