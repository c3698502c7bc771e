/* Time, injectable: the product reads the monotonic clock, a simulation its own. */
#ifndef CC_BASE_CLOCK_H
#define CC_BASE_CLOCK_H

#include <stdint.h>

typedef struct cc__clock {
    int64_t (*now_ns)(void *arg); /* never goes back; any thread */
    void *arg;
} cc__clock;

#define CC__MS 1000000LL
#define CC__NEVER INT64_MAX

cc__clock cc__clock_monotonic(void);

static inline int64_t cc__now(const cc__clock *clock) {
    return clock->now_ns(clock->arg);
}

#endif
