#include "csrc/agree/commit.h"

void cc__tally_start(cc__tally *tally, uint64_t *voted, uint32_t size, uint64_t base) {
    *tally = (cc__tally){.size = size, .voted = voted, .committed = base};
    for (uint32_t i = 0; i < size; i++) voted[i] = base;
}

int cc__tally_vote(cc__tally *tally, uint32_t member, uint64_t watermark) {
    uint64_t before = tally->voted[member];
    if (watermark <= before) return 0;
    tally->voted[member] = watermark;
    if (before > tally->committed) return 0; /* another member is the last */
    uint64_t least = watermark;
    for (uint32_t i = 0; i < tally->size; i++)
        if (tally->voted[i] < least) least = tally->voted[i];
    int rose = least > tally->committed;
    tally->committed = least;
    return rose;
}

cc__fate cc__fate_of(uint64_t sequence, const cc_outcome *outcome) {
    if (sequence <= outcome->committed) return CC__FATE_COMMITTED;
    return sequence <= outcome->failed ? CC__FATE_FAILED : CC__FATE_GOES_ON;
}
