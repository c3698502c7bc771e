/* The payloads of SEALED and EPOCH frames: a member's report, and the record of a failure. Members
 * carry them for each other when an agent is late. docs/protocol.md, section 3, has the layouts.
 *
 * Pure; the unpacking side trusts nothing. What it takes is those very bytes when packed again. */
#ifndef CC_WIRE_DISPATCH_H
#define CC_WIRE_DISPATCH_H

#include "csrc/base/limits.h"
#include "csrc/collectives.h"

#define CC__SEALED_BYTES_MIN 24u
#define CC__SEALED_BYTES_MAX                                                                       \
    (CC__SEALED_BYTES_MIN + CC_REPORT_LANES_MAX * (32u + 8u * CC_REPORT_CALLS_MAX) +               \
     CC_REPORT_EVIDENCE_MAX * 20u + CC_DETAIL_MAX - 1u)

#define CC__EPOCH_BYTES_MIN 48u
#define CC__EPOCH_BYTES_MAX                                                                        \
    (CC__EPOCH_BYTES_MIN + CC_MEMBERS_MAX / 8u + CC_REPORT_LANES_MAX * 28u + CC_DETAIL_MAX - 1u)

/* What a failure's record changes in the record before: nobody comes and no rank moves. */
typedef struct cc__delta {
    cc_cause cause; /* LOST, LINK, DEADLINE or MISMATCH */
    cc_peer_id lost;
    uint32_t lost_rank;
    cc_network network;
    uint32_t size;                    /* of the epoch before */
    uint8_t stay[CC_MEMBERS_MAX / 8]; /* bit i % 8 of byte i / 8: its member i is in this one */
    uint32_t n_lanes;
    cc_outcome lanes[CC_REPORT_LANES_MAX]; /* rising */
    char detail[CC_DETAIL_MAX];
} cc__delta;

int cc__delta_stays(const cc__delta *delta, uint32_t member);

/* All of the report but group and epoch, which are in the frame's header. Returns the bytes. */
uint32_t cc__sealed_pack(const cc_report *report, uint8_t out[CC__SEALED_BYTES_MAX]);
/* CC_PROTOCOL: no peer freezes such a report. Group and epoch are 0 afterwards. */
cc_status cc__sealed_unpack(const uint8_t *in, uint32_t length, cc_report *out);

uint32_t cc__delta_pack(const cc__delta *delta, uint8_t out[CC__EPOCH_BYTES_MAX]);
/* CC_PROTOCOL: no record of a failure says so. */
cc_status cc__delta_unpack(const uint8_t *in, uint32_t length, cc__delta *out);

#endif
