/* Element-wise arithmetic. Pure, thread-safe, never blocks. Results are the same bits on every
 * machine: no contraction, round to nearest even, denormals kept, NaN results canonical (quiet,
 * positive, payload zero), -0 < +0 in min and max, NaN propagates. The caller's floating-point
 * mode (rounding, flush-to-zero) is set aside and restored. bfloat16 and
 * float16 are calculated in float32 and rounded once per operation. Integers wrap around. */
#ifndef CC_KERNELS_H
#define CC_KERNELS_H

#include "csrc/collectives.h"

/* dst[i] = op(left[i], right[i]); dst may be left or right, not overlap them otherwise. Pointers
 * need element alignment at most; any alignment works. AVG adds: cc__divide divides at the end. */
void cc__reduce(void *dst, const void *left, const void *right, uint64_t count, cc_dtype dtype,
                cc_op op);

/* dst[i] /= divisor, for AVG; floating-point dtypes only. The quotient is rounded once from the
 * element's value (bfloat16: divided in float32). */
void cc__divide(void *dst, uint64_t count, cc_dtype dtype, uint32_t divisor);

/* dst[i] = src[i] * factor, for PREMUL_SUM; floating-point dtypes only. The factor is first rounded
 * to what the element computes in (float16 and bfloat16: float32), the product once to the element.
 * dst may be src. */
void cc__scale(void *dst, const void *src, uint64_t count, cc_dtype dtype, double factor);

/* Whether op is defined for dtype: avg and premul_sum of floating-point numbers only, the bitwise
 * ones of all others only. Of booleans, sum is or and prod is and. */
int cc__reduce_supports(cc_dtype dtype, cc_op op);

/* Tests: nonzero makes every later call use the portable twin. Returns whether AVX2 is there. */
int cc__kernels_force_portable(int portable);

#endif
