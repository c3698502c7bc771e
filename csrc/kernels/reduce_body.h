/* The loops themselves, included once by each twin, which differ in compiler flags alone. So there
 * is one source of truth for the arithmetic, and the compiler's vectoriser does the rest: every
 * loop is written without branches, on integers as wide as the element.
 *
 * Why integers: NaNs become one canonical NaN and -0 counts as less than +0, and both are questions
 * about bits. Only sums and quotients pass through floating point. Loads and stores go through
 * types of alignment 1 that may alias anything, which costs nothing on the machines we know. */

#ifdef __FAST_MATH__
#error "results must be the same bits everywhere: compile the kernels without -ffast-math"
#endif

/* dst may be left or right. That is no dependency between iterations, but the compiler's check for
 * overlap would take it for one and fall back to the scalar loop; this tells it better. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

typedef uint16_t any16 __attribute__((may_alias, aligned(1)));
typedef uint32_t any32 __attribute__((may_alias, aligned(1)));
typedef uint64_t any64 __attribute__((may_alias, aligned(1)));

#define NAN_FLOAT32 UINT32_C(0x7fc00000)
#define NAN_FLOAT64 UINT64_C(0x7ff8000000000000)
#define NAN_BFLOAT16 0x7fc0u

static inline float to_float32(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

static inline double to_float64(uint64_t bits) {
    union {
        uint64_t bits;
        double value;
    } both = {bits};
    return both.value;
}

static inline uint32_t from_float32(float value) {
    union {
        float value;
        uint32_t bits;
    } both = {value};
    return value != value ? NAN_FLOAT32 : both.bits;
}

static inline uint64_t from_float64(double value) {
    union {
        double value;
        uint64_t bits;
    } both = {value};
    return value != value ? NAN_FLOAT64 : both.bits;
}

/* To nearest, ties to even: half of the last kept bit is added, less one if that bit is zero. The
 * canonical NaN of float32 becomes that of bfloat16 by itself. */
static inline uint16_t bfloat16_from_float32(float value) {
    uint32_t bits = from_float32(value);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float bfloat16_to_float32(uint16_t bits) {
    return to_float32((uint32_t)bits << 16);
}

/* The order of floating-point numbers, as that of signed integers: negative numbers have their
 * magnitude bits flipped. It ranks -0 just below +0. */
static inline int16_t rank16(uint16_t bits) {
    return (int16_t)(bits ^ ((uint16_t)-(bits >> 15) & 0x7fffu));
}

static inline int32_t rank32(uint32_t bits) {
    return (int32_t)(bits ^ (-(bits >> 31) & UINT32_C(0x7fffffff)));
}

static inline int64_t rank64(uint64_t bits) {
    return (int64_t)(bits ^ (-(bits >> 63) & UINT64_C(0x7fffffffffffffff)));
}

static inline int is_nan16(uint16_t bits) {
    return (int16_t)(bits & 0x7fffu) > 0x7f80;
}

static inline int is_nan32(uint32_t bits) {
    return (int32_t)(bits & UINT32_C(0x7fffffff)) > INT32_C(0x7f800000);
}

static inline int is_nan64(uint64_t bits) {
    return (int64_t)(bits & UINT64_C(0x7fffffffffffffff)) > INT64_C(0x7ff0000000000000);
}

#define REDUCE_LOOP(name, any, expression)                                                         \
    static void name(void *dst, const void *left, const void *right, uint64_t count) {             \
        any *to = dst;                                                                             \
        const any *from_left = left, *from_right = right;                                          \
        INDEPENDENT                                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const any a = from_left[i], b = from_right[i];                                         \
            to[i] = (any)(expression);                                                             \
        }                                                                                          \
    }

#define DIVIDE_LOOP(name, any, type, expression)                                                   \
    static void name(void *dst, uint64_t count, uint32_t divisor) {                                \
        any *to = dst;                                                                             \
        const type by = (type)divisor; /* exact: a group has at most CC_MEMBERS_MAX members */     \
        INDEPENDENT                                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const any a = to[i];                                                                   \
            to[i] = (expression);                                                                  \
        }                                                                                          \
    }

#define PICK(is_nan, canonical, condition)                                                         \
    (is_nan(a) | is_nan(b) ? (canonical) : (condition) ? a : b)

REDUCE_LOOP(sum_float32, any32, from_float32(to_float32(a) + to_float32(b)))
REDUCE_LOOP(min_float32, any32, PICK(is_nan32, NAN_FLOAT32, rank32(a) < rank32(b)))
REDUCE_LOOP(max_float32, any32, PICK(is_nan32, NAN_FLOAT32, rank32(a) > rank32(b)))
DIVIDE_LOOP(divide_float32, any32, float, from_float32(to_float32(a) / by))

REDUCE_LOOP(sum_float64, any64, from_float64(to_float64(a) + to_float64(b)))
REDUCE_LOOP(min_float64, any64, PICK(is_nan64, NAN_FLOAT64, rank64(a) < rank64(b)))
REDUCE_LOOP(max_float64, any64, PICK(is_nan64, NAN_FLOAT64, rank64(a) > rank64(b)))
DIVIDE_LOOP(divide_float64, any64, double, from_float64(to_float64(a) / by))

REDUCE_LOOP(sum_bfloat16, any16,
            bfloat16_from_float32(bfloat16_to_float32(a) + bfloat16_to_float32(b)))
REDUCE_LOOP(min_bfloat16, any16, PICK(is_nan16, NAN_BFLOAT16, rank16(a) < rank16(b)))
REDUCE_LOOP(max_bfloat16, any16, PICK(is_nan16, NAN_BFLOAT16, rank16(a) > rank16(b)))
DIVIDE_LOOP(divide_bfloat16, any16, float, bfloat16_from_float32(bfloat16_to_float32(a) / by))

REDUCE_LOOP(sum_int32, any32, a + b)
REDUCE_LOOP(min_int32, any32, (int32_t)a < (int32_t)b ? a : b)
REDUCE_LOOP(max_int32, any32, (int32_t)a > (int32_t)b ? a : b)

REDUCE_LOOP(sum_int64, any64, a + b)
REDUCE_LOOP(min_int64, any64, (int64_t)a < (int64_t)b ? a : b)
REDUCE_LOOP(max_int64, any64, (int64_t)a > (int64_t)b ? a : b)

static const cc__kernels TABLE = {
    .reduce =
        {
            [CC_FLOAT32] = {NULL, sum_float32, sum_float32, min_float32, max_float32},
            [CC_FLOAT64] = {NULL, sum_float64, sum_float64, min_float64, max_float64},
            [CC_INT32] = {NULL, sum_int32, NULL, min_int32, max_int32},
            [CC_INT64] = {NULL, sum_int64, NULL, min_int64, max_int64},
            [CC_BFLOAT16] = {NULL, sum_bfloat16, sum_bfloat16, min_bfloat16, max_bfloat16},
        },
    .divide =
        {
            [CC_FLOAT32] = divide_float32,
            [CC_FLOAT64] = divide_float64,
            [CC_BFLOAT16] = divide_bfloat16,
        },
};
