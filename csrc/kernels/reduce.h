/* What the dispatcher knows of the twins: the same loops, compiled for different instruction sets.
 * Each twin offers one table of functions, indexed by dtype and op (index 0 is unused). */
#ifndef CC_KERNELS_REDUCE_H
#define CC_KERNELS_REDUCE_H

#include "csrc/kernels/kernels.h"

#define CC__DTYPES (CC_BOOL + 1)
#define CC__OPS (CC_PREMUL_SUM + 1)

typedef void cc__reduce_loop(void *dst, const void *left, const void *right, uint64_t count);
typedef void cc__divide_loop(void *dst, uint64_t count, uint32_t divisor);
typedef void cc__scale_loop(void *dst, const void *src, uint64_t count, double factor);

typedef struct cc__kernels {
    cc__reduce_loop *reduce[CC__DTYPES][CC__OPS]; /* NULL: not defined for this dtype */
    cc__divide_loop *divide[CC__DTYPES];
    cc__scale_loop *scale[CC__DTYPES];
} cc__kernels;

const cc__kernels *cc__kernels_portable(void);
/* x86-64 builds only. NULL: compiled without AVX2. */
const cc__kernels *cc__kernels_avx2(void);

#endif
