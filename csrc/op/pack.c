#include "csrc/op/pack.h"

#include "csrc/base/pool.h"
#include "csrc/kernels/kernels.h"
#include "csrc/op/request.h"

#include <stdlib.h>
#include <string.h>

#define STEP_BYTES (256u << 10) /* of one memcpy under the lock */

/* ---- checks ------------------------------------------------------------------------------- */

typedef struct span {
    uintptr_t first, end;
    bool is_output;
} span;

static int by_address(const void *left, const void *right) {
    uintptr_t a = ((const span *)left)->first, b = ((const span *)right)->first;
    return (a > b) - (a < b);
}

/* Whether no output overlaps with anything, but for its own input in place. */
static bool outputs_are_apart(span *spans, size_t n) {
    uintptr_t inputs_end = 0, outputs_end = 0;
    qsort(spans, n, sizeof *spans, by_address);
    for (size_t i = 0; i < n; i++) {
        if (spans[i].first < outputs_end) return false;
        if (spans[i].is_output && spans[i].first < inputs_end) return false;
        uintptr_t *end = spans[i].is_output ? &outputs_end : &inputs_end;
        if (spans[i].end > *end) *end = spans[i].end;
    }
    return true;
}

static const char *overlap_fault(const cc_part *parts, uint32_t n_parts, size_t element_bytes) {
    size_t n = 0;
    span *spans = malloc((2 * (size_t)n_parts + 1) * sizeof *spans);
    if (spans == NULL) return "there is no memory to check so many arrays";
    for (uint32_t i = 0; i < n_parts; i++) {
        uintptr_t in = (uintptr_t)parts[i].in, out = (uintptr_t)parts[i].out;
        size_t bytes = parts[i].count * element_bytes;
        if (bytes == 0) continue;
        spans[n++] = (span){out, out + bytes, true};
        if (in != out) spans[n++] = (span){in, in + bytes, false};
    }
    bool apart = outputs_are_apart(spans, n);
    free(spans);
    return apart ? NULL : "outputs overlap each other or other inputs";
}

const char *cc__parts_fault(const cc_request *request, const cc_part *parts, uint32_t n_parts) {
    size_t element_bytes = cc_dtype_bytes(request->dtype);
    uint64_t left = element_bytes > 0 ? (UINT64_C(1) << 60) / element_bytes : 0;
    if (request->kind != CC_ALL_REDUCE) return "only all_reduce takes several arrays";
    if (element_bytes == 0) return "no such dtype";
    for (uint32_t i = 0; i < n_parts; i++) {
        if (parts[i].count > left) return "count is too large";
        left -= parts[i].count;
        if (parts[i].count > 0 && (parts[i].in == NULL || parts[i].out == NULL))
            return "the buffer of an array is missing";
        if (request->op == CC_PREMUL_SUM && parts[i].in == parts[i].out)
            return "premul_sum of several arrays cannot be in place";
    }
    return overlap_fault(parts, n_parts, element_bytes);
}

/* ---- the copy ----------------------------------------------------------------------------- */

/* An input that is scaled; a request for one array keeps its own output. */
static cc_status open_scaled(cc__pack *pack, cc_request *request) {
    uint64_t count = cc__request_total(request, false);
    uint64_t bytes = count * pack->element_bytes;
    pack->in = cc__pool_take(bytes + 1);
    if (pack->in == NULL) return CC_NO_MEMORY;
    uintptr_t in = (uintptr_t)request->in, out = (uintptr_t)request->out;
    pack->over_input = out >= in && out < in + bytes;
    cc__scale(pack->in, request->in, count, request->dtype, request->factor);
    request->in = pack->in;
    return CC_OK;
}

static cc_status open_parts(cc__pack *pack, cc_request *request) {
    uint64_t at = 0, bytes = request->count * pack->element_bytes;
    pack->in = cc__pool_take(bytes + 1);
    pack->out = cc__pool_take(bytes + 1);
    if (pack->in == NULL || pack->out == NULL) return CC_NO_MEMORY;
    for (uint32_t i = 0; i < pack->n_parts; i++) {
        uint64_t part_bytes = pack->parts[i].count * pack->element_bytes;
        if (part_bytes > 0) memcpy(pack->in + at, pack->parts[i].in, part_bytes);
        at += part_bytes;
    }
    if (request->op == CC_PREMUL_SUM)
        cc__scale(pack->in, pack->in, request->count, request->dtype, request->factor);
    request->in = pack->in;
    request->out = pack->out;
    return CC_OK;
}

cc_status cc__pack_open(cc__pack *pack, cc_request *request, const cc_part *parts,
                        uint32_t n_parts) {
    *pack = (cc__pack){.element_bytes = (uint32_t)cc_dtype_bytes(request->dtype)};
    cc_status status = CC_OK;
    if (n_parts > 0) {
        pack->parts = malloc(n_parts * sizeof *parts);
        pack->n_parts = n_parts;
        if (pack->parts) memcpy(pack->parts, parts, n_parts * sizeof *parts);
        status = pack->parts ? open_parts(pack, request) : CC_NO_MEMORY;
    } else if (request->op == CC_PREMUL_SUM) {
        status = open_scaled(pack, request);
    }
    if (status != CC_OK) cc__pack_close(pack);
    return status;
}

bool cc__pack_deliver(cc__pack *pack, uint64_t *budget) {
    while (pack->next < pack->n_parts) {
        const cc_part *part = &pack->parts[pack->next];
        uint64_t left = part->count * pack->element_bytes - pack->next_offset;
        if (left == 0) {
            pack->next++;
            pack->next_offset = 0;
            continue;
        }
        uint64_t length = left < STEP_BYTES ? left : STEP_BYTES;
        if (*budget < length) return false;
        *budget -= length;
        memcpy((uint8_t *)part->out + pack->next_offset, pack->out + pack->offset, length);
        pack->next_offset += length;
        pack->offset += length;
    }
    return true;
}

void cc__pack_restore(const cc__pack *pack) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < pack->n_parts && at < pack->offset; i++) {
        const cc_part *part = &pack->parts[i];
        uint64_t bytes = part->count * pack->element_bytes;
        if (part->in == part->out && bytes > 0) memcpy(part->out, pack->in + at, bytes);
        at += bytes;
    }
}

void cc__pack_rewind(cc__pack *pack) {
    pack->next = 0;
    pack->next_offset = pack->offset = 0;
}

void cc__pack_close(cc__pack *pack) {
    cc__pool_give(pack->in);
    cc__pool_give(pack->out);
    free(pack->parts);
    *pack = (cc__pack){0};
}
