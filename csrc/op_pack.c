#include "csrc/op_pack.h"

#include "csrc/kernels/kernels.h"
#include "csrc/op_request.h"

#include <stdlib.h>
#include <string.h>

#define STEP_BYTES (256u << 10) /* of one memcpy under the lock */

/* An input that is scaled; a request for one array keeps its own output. */
static cc_status open_scaled(cc__pack *pack, cc_request *request) {
    uint64_t count = cc__request_total(request, false);
    uint64_t bytes = count * pack->element_bytes;
    pack->in = malloc(bytes + 1);
    if (pack->in == NULL) return CC_NO_MEMORY;
    uintptr_t in = (uintptr_t)request->in, out = (uintptr_t)request->out;
    pack->over_input = out >= in && out < in + bytes;
    cc__scale(pack->in, request->in, count, request->dtype, request->factor);
    request->in = pack->in;
    return CC_OK;
}

static cc_status open_parts(cc__pack *pack, cc_request *request) {
    uint64_t at = 0, bytes = request->count * pack->element_bytes;
    pack->in = malloc(bytes + 1);
    pack->out = malloc(bytes + 1);
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
    free(pack->in);
    free(pack->out);
    free(pack->parts);
    *pack = (cc__pack){0};
}
