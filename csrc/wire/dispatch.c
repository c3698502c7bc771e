/* Reports and records to bytes and back. */
#include "csrc/wire/dispatch.h"

#include "csrc/wire/bytes.h"

#include <string.h>

#define WANTS (CC_WANT_JOIN | CC_WANT_LEAVE)

/* Bytes that are left to be read. Reading beyond their end yields zeros and is noticed. */
typedef struct cursor {
    const uint8_t *at, *end;
    int broken;
} cursor;

static const uint8_t *take(cursor *in, uint32_t bytes) {
    static const uint8_t zeros[CC_DETAIL_MAX];
    if (in->broken || (size_t)(in->end - in->at) < bytes) {
        in->broken = 1;
        return zeros; /* nothing longer is ever taken at once */
    }
    in->at += bytes;
    return in->at - bytes;
}

static uint64_t number(cursor *in, int bytes) {
    return cc__get(take(in, (uint32_t)bytes), bytes);
}

static void take_id(cursor *in, cc_peer_id *out) {
    memcpy(out->bytes, take(in, sizeof out->bytes), sizeof out->bytes);
}

static int is_zero(const cc_peer_id *id) {
    static const cc_peer_id zero;
    return memcmp(id, &zero, sizeof zero) == 0;
}

/* The text is the last thing in a payload. */
static cc_status take_detail(cursor *in, uint32_t bytes, char out[CC_DETAIL_MAX]) {
    if (bytes >= CC_DETAIL_MAX) return CC_PROTOCOL;
    memcpy(out, take(in, bytes), bytes);
    memset(out + bytes, 0, CC_DETAIL_MAX - bytes);
    if (in->broken || in->at != in->end || memchr(out, 0, CC_DETAIL_MAX) != out + bytes)
        return CC_PROTOCOL;
    return CC_OK;
}

static uint8_t *put(uint8_t *at, uint64_t value, int bytes) {
    cc__put(at, value, bytes);
    return at + bytes;
}

static uint8_t *put_bytes(uint8_t *at, const void *from, size_t bytes) {
    memcpy(at, from, bytes);
    return at + bytes;
}

/* ---- SEALED ------------------------------------------------------------------------------- */

uint32_t cc__sealed_pack(const cc_report *report, uint8_t out[CC__SEALED_BYTES_MAX]) {
    size_t detail = strlen(report->detail);
    uint8_t *at = put(out, report->cause, 4);
    at = put(at, report->wants, 4);
    at = put(at, report->boundary, 8);
    at = put(at, report->n_lanes, 2);
    at = put(at, report->n_evidence, 2);
    at = put(at, detail, 2);
    at = put(at, 0, 2);
    for (uint32_t i = 0; i < report->n_lanes; i++) {
        const cc_lane_report *lane = &report->lanes[i];
        at = put(at, lane->lane, 4);
        at = put(at, lane->n_calls, 4);
        at = put(at, lane->committed, 8);
        at = put(at, lane->done, 8);
        at = put(at, lane->posted, 8);
        for (uint32_t call = 0; call < lane->n_calls; call++) at = put(at, lane->calls[call], 8);
    }
    for (uint32_t i = 0; i < report->n_evidence; i++) {
        at = put_bytes(at, report->evidence[i].peer.bytes, 16);
        at = put(at, report->evidence[i].kind, 4);
    }
    at = put_bytes(at, report->detail, detail);
    return (uint32_t)(at - out);
}

static int take_lane(cursor *in, cc_lane_report *out) {
    out->lane = (uint32_t)number(in, 4);
    out->n_calls = (uint32_t)number(in, 4);
    out->committed = number(in, 8);
    out->done = number(in, 8);
    out->posted = number(in, 8);
    if (out->lane >= CC_LANES_MAX || out->committed > out->done || out->done > out->posted ||
        out->n_calls > CC_REPORT_CALLS_MAX || out->n_calls > out->posted - out->committed)
        return 0;
    for (uint32_t i = 0; i < out->n_calls; i++) out->calls[i] = number(in, 8);
    return !in->broken;
}

static int take_evidence(cursor *in, cc_evidence *out) {
    take_id(in, &out->peer);
    uint32_t kind = (uint32_t)number(in, 4);
    out->kind = (cc_evidence_kind)kind;
    return kind >= CC_EVIDENCE_CLOSED && kind <= CC_EVIDENCE_PROTOCOL && !is_zero(&out->peer);
}

cc_status cc__sealed_unpack(const uint8_t *bytes, uint32_t length, cc_report *out) {
    cursor in = {bytes, bytes + length, 0};
    *out = (cc_report){0};
    uint32_t cause = (uint32_t)number(&in, 4);
    out->cause = (cc_cause)cause;
    out->wants = (uint32_t)number(&in, 4);
    out->boundary = number(&in, 8);
    out->n_lanes = (uint32_t)number(&in, 2);
    out->n_evidence = (uint32_t)number(&in, 2);
    uint32_t detail = (uint32_t)number(&in, 2), nothing = (uint32_t)number(&in, 2);
    if (cause < CC_CAUSE_BOUNDARY || cause > CC_CAUSE_MISMATCH || out->wants > WANTS || nothing ||
        out->n_lanes > CC_REPORT_LANES_MAX || out->n_evidence > CC_REPORT_EVIDENCE_MAX)
        return CC_PROTOCOL;
    for (uint32_t i = 0; i < out->n_lanes; i++) {
        if (!take_lane(&in, &out->lanes[i])) return CC_PROTOCOL;
        if (i > 0 && out->lanes[i].lane <= out->lanes[i - 1].lane) return CC_PROTOCOL;
    }
    for (uint32_t i = 0; i < out->n_evidence; i++)
        if (!take_evidence(&in, &out->evidence[i])) return CC_PROTOCOL;
    return take_detail(&in, detail, out->detail);
}

/* ---- EPOCH -------------------------------------------------------------------------------- */

int cc__delta_stays(const cc__delta *delta, uint32_t member) {
    return member < delta->size && delta->stay[member / 8] >> (member % 8) & 1;
}

uint32_t cc__delta_pack(const cc__delta *delta, uint8_t out[CC__EPOCH_BYTES_MAX]) {
    size_t detail = strlen(delta->detail);
    uint8_t *at = put(out, delta->cause, 4);
    at = put_bytes(at, delta->lost.bytes, 16);
    at = put(at, delta->lost_rank, 4);
    at = put(at, delta->network.latency_ns, 8);
    at = put(at, delta->network.bytes_per_s, 8);
    at = put(at, delta->size, 2);
    at = put(at, delta->n_lanes, 2);
    at = put(at, detail, 2);
    at = put(at, 0, 2);
    at = put_bytes(at, delta->stay, (delta->size + 7) / 8);
    for (uint32_t i = 0; i < delta->n_lanes; i++) {
        at = put(at, delta->lanes[i].lane, 4);
        at = put(at, delta->lanes[i].committed, 8);
        at = put(at, delta->lanes[i].failed, 8);
        at = put(at, delta->lanes[i].posted, 8);
    }
    at = put_bytes(at, delta->detail, detail);
    return (uint32_t)(at - out);
}

static int take_outcome(cursor *in, cc_outcome *out) {
    out->lane = (uint32_t)number(in, 4);
    out->committed = number(in, 8);
    out->failed = number(in, 8);
    out->posted = number(in, 8);
    return out->lane < CC_LANES_MAX && out->committed <= out->failed && out->failed <= out->posted;
}

cc_status cc__delta_unpack(const uint8_t *bytes, uint32_t length, cc__delta *out) {
    cursor in = {bytes, bytes + length, 0};
    *out = (cc__delta){0};
    uint32_t cause = (uint32_t)number(&in, 4);
    out->cause = (cc_cause)cause;
    take_id(&in, &out->lost);
    out->lost_rank = (uint32_t)number(&in, 4);
    out->network.latency_ns = number(&in, 8);
    out->network.bytes_per_s = number(&in, 8);
    out->size = (uint32_t)number(&in, 2);
    out->n_lanes = (uint32_t)number(&in, 2);
    uint32_t detail = (uint32_t)number(&in, 2), nothing = (uint32_t)number(&in, 2);
    if (cause < CC_CAUSE_LOST || cause > CC_CAUSE_MISMATCH || nothing || out->size < 1 ||
        out->size > CC_MEMBERS_MAX || out->n_lanes > CC_REPORT_LANES_MAX ||
        out->lost_rank >= CC_MEMBERS_MAX)
        return CC_PROTOCOL;
    memcpy(out->stay, take(&in, (out->size + 7) / 8), (out->size + 7) / 8);
    if (out->size % 8 && out->stay[out->size / 8] >> (out->size % 8)) return CC_PROTOCOL;
    for (uint32_t i = 0; i < out->n_lanes; i++) {
        if (!take_outcome(&in, &out->lanes[i])) return CC_PROTOCOL;
        if (i > 0 && out->lanes[i].lane <= out->lanes[i - 1].lane) return CC_PROTOCOL;
    }
    return take_detail(&in, detail, out->detail);
}
