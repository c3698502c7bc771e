/* The commit rule of one lane in one epoch: who has voted how far, and what follows. Pure.
 *
 * A vote is a watermark: its sender holds the results of all operations up to it. What all members
 * have voted for is committed; nothing else ever is, inside an epoch. docs/protocol.md section 5. */
#ifndef CC_AGREE_COMMIT_H
#define CC_AGREE_COMMIT_H

#include "csrc/collectives.h"

typedef struct cc__tally {
    uint32_t size;
    uint64_t *voted; /* by member index; the owner's memory */
    uint64_t committed;
} cc__tally;

/* Every member starts at `base`: what the epoch's record settled. */
void cc__tally_start(cc__tally *tally, uint64_t *voted, uint32_t size, uint64_t base);

/* Takes a vote; returns whether `committed` rose. Votes that say less than earlier ones are old. */
int cc__tally_vote(cc__tally *tally, uint32_t member, uint64_t watermark);

/* What an epoch record makes of one operation that was open when the last epoch was sealed. */
typedef enum cc__fate { CC__FATE_COMMITTED, CC__FATE_FAILED, CC__FATE_GOES_ON } cc__fate;

cc__fate cc__fate_of(uint64_t sequence, const cc_outcome *outcome);

#endif
