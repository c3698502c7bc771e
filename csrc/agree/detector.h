/* Who is silent. Pure: the caller says what it heard and what time it is.
 *
 * A peer that is itself late (its process was stopped, the machine is overloaded) must not accuse
 * others of the silence it slept through: when a tick comes late, all deadlines move by as much. */
#ifndef CC_AGREE_DETECTOR_H
#define CC_AGREE_DETECTOR_H

#include <stdint.h>

typedef struct cc__detector {
    int64_t dead_ns;
    int64_t tick_max_ns; /* ticks further apart than this mean that this peer was late */
    int64_t last_tick_ns;
    int64_t slept_ns; /* all lateness so far */
} cc__detector;

/* One watched peer. Times of hearing are kept relative to `slept_ns`. */
typedef struct cc__watch {
    int64_t heard_ns;
} cc__watch;

void cc__detector_start(cc__detector *detector, int64_t now, int64_t dead_ns, int64_t tick_max_ns);
void cc__detector_tick(cc__detector *detector, int64_t now);
void cc__watch_heard(cc__watch *watch, const cc__detector *detector, int64_t now);
/* When the peer has to be called silent if nothing is heard of it. */
int64_t cc__watch_deadline(const cc__watch *watch, const cc__detector *detector);

#endif
