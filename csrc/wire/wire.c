/* Frames to bytes and back. Pure; the unpacking side trusts nothing. */
#include "csrc/wire/wire.h"

#include "csrc/base/limits.h"
#include "csrc/wire/bytes.h"
#include "csrc/wire/dispatch.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAGIC_0 0xCC
#define MAGIC_1 0x01

void cc__frame_pack(const cc__frame *frame, uint8_t out[CC_HEADER_BYTES]) {
    out[0] = MAGIC_0;
    out[1] = MAGIC_1;
    out[2] = frame->type;
    out[3] = frame->lane;
    cc__put(out + 4, frame->slot, 2);
    cc__put(out + 6, frame->signature.flags, 2);
    cc__put(out + 8, frame->group, 4);
    cc__put(out + 12, frame->length, 4);
    cc__put(out + 16, frame->epoch, 8);
    cc__put(out + 24, frame->sequence, 8);
    cc__put(out + 32, frame->offset, 8);
    out[40] = frame->signature.kind;
    out[41] = frame->signature.dtype;
    out[42] = frame->signature.op;
    out[43] = frame->signature.algorithm;
    cc__put(out + 44, frame->signature.root, 4);
    cc__put(out + 48, frame->signature.count, 8);
    cc__put(out + 56, frame->signature.digest, 8);
}

/* The longest payload of a type, or -1 where the type may not come on such a stream. */
static int64_t payload_max(uint8_t type, int bulk, uint32_t segment_bytes) {
    if (bulk) return type == CC__DATA || type == CC__PIECE ? (int64_t)segment_bytes : -1;
    switch (type) {
    case CC__BEAT:
    case CC__INSTALLED:
    case CC__READY:
    case CC__VOTE:
    case CC__ACCEPT:
    case CC__TAKEN:
    case CC__CANCEL:
    case CC__SESSION:
    case CC__RESUMED:
    case CC__BYE: return 0;
    case CC__OFFER:
    case CC__RESUME:
    case CC__EAGER: return CC_EAGER_BYTES;
    case CC__ABORT: return CC__ABORT_BYTES;
    case CC__SEALED: return CC__SEALED_BYTES_MAX;
    case CC__EPOCH: return CC__EPOCH_BYTES_MAX;
    default: return -1;
    }
}

static uint32_t payload_min(uint8_t type) {
    switch (type) {
    case CC__DATA:
    case CC__EAGER:
    case CC__PIECE:
    case CC__RESUME: return 1;
    case CC__ABORT: return CC__ABORT_BYTES;
    case CC__SEALED: return CC__SEALED_BYTES_MIN;
    case CC__EPOCH: return CC__EPOCH_BYTES_MIN;
    default: return 0;
    }
}

cc_status cc__frame_unpack(const uint8_t in[CC_HEADER_BYTES], int bulk, uint32_t segment_bytes,
                           cc__frame *out) {
    out->type = in[2];
    out->lane = in[3];
    out->slot = (uint16_t)cc__get(in + 4, 2);
    out->group = (uint32_t)cc__get(in + 8, 4);
    out->length = (uint32_t)cc__get(in + 12, 4);
    out->epoch = cc__get(in + 16, 8);
    out->sequence = cc__get(in + 24, 8);
    out->offset = cc__get(in + 32, 8);
    out->signature = (cc__signature){
        .kind = in[40],
        .dtype = in[41],
        .op = in[42],
        .algorithm = in[43],
        .root = (uint32_t)cc__get(in + 44, 4),
        .count = cc__get(in + 48, 8),
        .digest = cc__get(in + 56, 8),
        .flags = (uint16_t)cc__get(in + 6, 2),
    };
    if (in[0] != MAGIC_0 || in[1] != MAGIC_1 || out->lane >= CC_LANES_MAX) return CC_PROTOCOL;
    int64_t most = payload_max(out->type, bulk, segment_bytes);
    if (most < 0 || out->length > most || out->length < payload_min(out->type)) return CC_PROTOCOL;
    return CC_OK;
}

void cc__abort_pack(const cc__abort_payload *payload, uint8_t out[CC__ABORT_BYTES]) {
    memcpy(out, payload->suspect.bytes, 16);
    cc__put(out + 16, payload->evidence, 4);
    cc__put(out + 20, payload->cause, 4);
}

cc_status cc__abort_unpack(const uint8_t in[CC__ABORT_BYTES], cc__abort_payload *out) {
    memcpy(out->suspect.bytes, in, 16);
    out->evidence = (uint32_t)cc__get(in + 16, 4);
    out->cause = (uint32_t)cc__get(in + 20, 4);
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
    uint64_t hash = mix(mix(mix(what + 1) ^ signature->count) + signature->digest);
    hash = mix(hash ^ signature->flags);
    return hash ? hash : 1;
}

int cc__signature_equal(const cc__signature *a, const cc__signature *b) {
    return a->kind == b->kind && a->dtype == b->dtype && a->op == b->op &&
           a->algorithm == b->algorithm && a->root == b->root && a->count == b->count &&
           a->digest == b->digest && a->flags == b->flags;
}

static const char *name_of(const char *const *names, size_t count, uint8_t value) {
    return value < count && names[value] ? names[value] : "?";
}

uint64_t cc__counts_digest(const uint64_t *counts, uint32_t n) {
    uint64_t digest = n;
    for (uint32_t i = 0; i < n; i++) digest = mix(digest ^ mix(counts[i] + 1));
    return digest ? digest : 1;
}

/* What the text of a kind shows besides its dtype. */
enum { OP = 1, ROOT = 2, COUNT = 4, DTYPE = 8 };

static const struct {
    const char *name;
    int shows;
} KINDS[] = {
    [CC_ALL_REDUCE] = {"all_reduce", DTYPE | OP | COUNT},
    [CC_BROADCAST] = {"broadcast", DTYPE | ROOT | COUNT},
    [CC_ALL_GATHER] = {"all_gather", DTYPE | COUNT},
    [CC_BARRIER] = {"barrier", 0},
    [CC_BOUNDARY] = {"admit", 0},
    [CC_REDUCE] = {"reduce", DTYPE | OP | ROOT | COUNT},
    [CC_GATHER] = {"gather", DTYPE | ROOT | COUNT},
    [CC_SCATTER] = {"scatter", DTYPE | ROOT | COUNT},
    [CC_REDUCE_SCATTER] = {"reduce_scatter", DTYPE | OP | COUNT},
    [CC_ALL_TO_ALL] = {"all_to_all", DTYPE | COUNT},
    [CC_SEND] = {"send", DTYPE | COUNT},
    [CC_RECEIVE] = {"receive", DTYPE | COUNT},
};

static const char *const DTYPES[] = {
    [CC_FLOAT32] = "float32", [CC_FLOAT64] = "float64",   [CC_INT32] = "int32",
    [CC_INT64] = "int64",     [CC_BFLOAT16] = "bfloat16", [CC_FLOAT16] = "float16",
    [CC_INT8] = "int8",       [CC_INT16] = "int16",       [CC_UINT8] = "uint8",
    [CC_UINT16] = "uint16",   [CC_UINT32] = "uint32",     [CC_UINT64] = "uint64",
    [CC_BOOL] = "bool",
};

static const char *const OPS[] = {
    [CC_SUM] = "sum", [CC_AVG] = "avg",   [CC_MIN] = "min",
    [CC_MAX] = "max", [CC_PROD] = "prod", [CC_BAND] = "band",
    [CC_BOR] = "bor", [CC_BXOR] = "bxor", [CC_PREMUL_SUM] = "premul_sum",
};

static const char *const ALGORITHMS[] = {
    [CC_AUTO] = "auto",
    [CC_RING] = "ring",
    [CC_RECURSIVE_DOUBLING] = "recursive_doubling",
    [CC_DIRECT] = "direct",
    [CC_HALVING_DOUBLING] = "halving_doubling",
    [CC_TREE] = "tree",
};

static void append(char **at, char *end, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void append(char **at, char *end, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(*at, (size_t)(end - *at), format, arguments);
    va_end(arguments);
    if (written > 0) *at += written < end - *at ? written : end - *at - 1;
}

void cc__signature_text(const cc__signature *signature, char *out, size_t size) {
#define NAME(table, value) name_of(table, sizeof table / sizeof table[0], value)
    char *end = out + size;
    if (signature->kind >= sizeof KINDS / sizeof KINDS[0] || KINDS[signature->kind].name == NULL) {
        append(&out, end, "an unknown operation");
        return;
    }
    int kind = signature->flags & CC__BYTE_BARRIER ? CC_BARRIER : signature->kind;
    int shows = KINDS[kind].shows;
    append(&out, end, "%s(", KINDS[kind].name);
    if (shows & DTYPE) append(&out, end, "%s", NAME(DTYPES, signature->dtype));
    if (shows & OP) append(&out, end, ", op=%s", NAME(OPS, signature->op));
    if (shows & ROOT) append(&out, end, ", root=%u", signature->root);
    if (shows & COUNT && !(signature->kind == CC_ALL_TO_ALL && signature->digest))
        append(&out, end, ", count=%llu", (unsigned long long)signature->count);
    if (signature->digest)
        append(&out, end, ", uneven %04x", (unsigned)(signature->digest & 0xffff));
    if (shows & COUNT) append(&out, end, ", algorithm=%s", NAME(ALGORITHMS, signature->algorithm));
    const char *comma = shows ? ", " : ""; /* a barrier has nothing else to show */
    if (signature->flags & CC__WHOLE) append(&out, end, "%swhole", comma), comma = ", ";
    if (signature->flags & CC__FINAL) append(&out, end, "%sno retry", comma);
    append(&out, end, ")");
#undef NAME
}
