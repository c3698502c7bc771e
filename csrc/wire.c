/* Frames to bytes and back. Pure; the unpacking side trusts nothing. */
#include "csrc/wire.h"

#include "csrc/base/limits.h"

#include <stdio.h>
#include <string.h>

#define MAGIC_0 0xCC
#define MAGIC_1 0x01

static void put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

void cc__frame_pack(const cc__frame *frame, uint8_t out[CC_HEADER_BYTES]) {
    out[0] = MAGIC_0;
    out[1] = MAGIC_1;
    out[2] = frame->type;
    out[3] = frame->lane;
    put(out + 4, frame->slot, 2);
    put(out + 6, frame->attempt, 2);
    put(out + 8, frame->group, 4);
    put(out + 12, frame->length, 4);
    put(out + 16, frame->epoch, 8);
    put(out + 24, frame->sequence, 8);
    put(out + 32, frame->offset, 8);
    out[40] = frame->signature.kind;
    out[41] = frame->signature.dtype;
    out[42] = frame->signature.op;
    out[43] = frame->signature.algorithm;
    put(out + 44, frame->signature.root, 4);
    put(out + 48, frame->signature.count, 8);
}

/* The longest payload of a type, or -1 where the type may not come on such a stream. */
static int64_t payload_max(uint8_t type, int bulk, uint32_t segment_bytes) {
    if (bulk) return type == CC__DATA ? (int64_t)segment_bytes : -1;
    switch (type) {
    case CC__BEAT:
    case CC__INSTALLED:
    case CC__READY:
    case CC__VOTE:
    case CC__BYE: return 0;
    case CC__EAGER: return CC_EAGER_BYTES;
    case CC__ABORT: return CC__ABORT_BYTES;
    default: return -1;
    }
}

cc_status cc__frame_unpack(const uint8_t in[CC_HEADER_BYTES], int bulk, uint32_t segment_bytes,
                           cc__frame *out) {
    out->type = in[2];
    out->lane = in[3];
    out->slot = (uint16_t)get(in + 4, 2);
    out->attempt = (uint16_t)get(in + 6, 2);
    out->group = (uint32_t)get(in + 8, 4);
    out->length = (uint32_t)get(in + 12, 4);
    out->epoch = get(in + 16, 8);
    out->sequence = get(in + 24, 8);
    out->offset = get(in + 32, 8);
    out->signature = (cc__signature){
        .kind = in[40],
        .dtype = in[41],
        .op = in[42],
        .algorithm = in[43],
        .root = (uint32_t)get(in + 44, 4),
        .count = get(in + 48, 8),
    };
    if (in[0] != MAGIC_0 || in[1] != MAGIC_1 || out->lane >= CC_LANES_MAX) return CC_PROTOCOL;
    int64_t most = payload_max(out->type, bulk, segment_bytes);
    if (most < 0 || out->length > most) return CC_PROTOCOL;
    int has_data = out->type == CC__DATA || out->type == CC__EAGER;
    if (has_data && out->length == 0) return CC_PROTOCOL;
    if (out->type == CC__ABORT && out->length != CC__ABORT_BYTES) return CC_PROTOCOL;
    return CC_OK;
}

void cc__abort_pack(const cc__abort_payload *payload, uint8_t out[CC__ABORT_BYTES]) {
    memcpy(out, payload->suspect.bytes, 16);
    put(out + 16, payload->evidence, 4);
    put(out + 20, payload->cause, 4);
}

cc_status cc__abort_unpack(const uint8_t in[CC__ABORT_BYTES], cc__abort_payload *out) {
    memcpy(out->suspect.bytes, in, 16);
    out->evidence = (uint32_t)get(in + 16, 4);
    out->cause = (uint32_t)get(in + 20, 4);
    if (out->evidence > CC_EVIDENCE_PROTOCOL) return CC_PROTOCOL;
    if (out->cause < CC_CAUSE_BOUNDARY || out->cause > CC_CAUSE_MISMATCH) return CC_PROTOCOL;
    return CC_OK;
}

static uint64_t mix(uint64_t z) { /* the finaliser of splitmix64, Steele et al. 2014 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint64_t cc__signature_hash(const cc__signature *signature) {
    uint64_t what = (uint64_t)signature->kind << 56 | (uint64_t)signature->dtype << 48 |
                    (uint64_t)signature->op << 40 | (uint64_t)signature->algorithm << 32 |
                    signature->root;
    uint64_t hash = mix(mix(what + 1) ^ signature->count);
    return hash ? hash : 1;
}

int cc__signature_equal(const cc__signature *a, const cc__signature *b) {
    return a->kind == b->kind && a->dtype == b->dtype && a->op == b->op &&
           a->algorithm == b->algorithm && a->root == b->root && a->count == b->count;
}

static const char *name_of(const char *const *names, size_t count, uint8_t value) {
    return value < count && names[value] ? names[value] : "?";
}

void cc__signature_text(const cc__signature *signature, char *out, size_t size) {
    static const char *const kinds[] = {0,         "all_reduce", "broadcast", "all_gather",
                                        "barrier", "admit"};
    static const char *const dtypes[] = {0, "float32", "float64", "int32", "int64", "bfloat16"};
    static const char *const ops[] = {0, "sum", "avg", "min", "max"};
    static const char *const algorithms[] = {"auto", "ring", "recursive_doubling", "direct"};
#define NAME(table, value) name_of(table, sizeof table / sizeof table[0], value)
    const char *kind = NAME(kinds, signature->kind);
    const char *dtype = NAME(dtypes, signature->dtype);
    const char *op = NAME(ops, signature->op);
    const char *algorithm = NAME(algorithms, signature->algorithm);
#undef NAME
    unsigned long long count = (unsigned long long)signature->count;
    switch (signature->kind) {
    case CC_ALL_REDUCE:
        snprintf(out, size, "%s(%s, op=%s, count=%llu, algorithm=%s)", kind, dtype, op, count,
                 algorithm);
        break;
    case CC_BROADCAST:
        snprintf(out, size, "%s(%s, root=%u, count=%llu, algorithm=%s)", kind, dtype,
                 signature->root, count, algorithm);
        break;
    case CC_ALL_GATHER:
        snprintf(out, size, "%s(%s, count=%llu, algorithm=%s)", kind, dtype, count, algorithm);
        break;
    default: snprintf(out, size, "%s()", kind); break;
    }
}
