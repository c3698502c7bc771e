/* Names and sizes of the public enumerations. The texts complete a sentence for a reader who sees
 * nothing else; what happened to whom is in cc_info.message. */
#include "csrc/collectives.h"

const char *cc_status_text(cc_status status) {
    switch (status) {
    case CC_OK: return "success";
    case CC_PENDING: return "not complete yet";
    case CC_PEER_LOST: return "a member of the group was lost";
    case CC_EVICTED: return "this peer is no longer a member of the group";
    case CC_GROUP_TOO_SMALL: return "fewer members are left than the group's floor";
    case CC_OUTCOME_UNKNOWN: return "the outcome of the operation could not be decided";
    case CC_COORDINATOR_LOST: return "the coordinator stayed away, so nothing could be decided";
    case CC_MISMATCH: return "peers called different operations";
    case CC_TIMED_OUT: return "timed out";
    case CC_CLOSED: return "closed";
    case CC_PROTOCOL: return "received data that is not of this protocol or version";
    case CC_INVALID: return "invalid argument";
    case CC_UNSUPPORTED: return "not supported by this build or group";
    case CC_NO_MEMORY: return "out of memory";
    case CC_BUSY: return "too much is open at once: complete something first";
    case CC_REFUSED: return "connection refused: nobody listens at that address";
    case CC_UNREACHABLE: return "no route to that address, or no answer from it";
    case CC_SYSTEM: return "the operating system refused a resource";
    }
    return "unknown status";
}

size_t cc_dtype_bytes(cc_dtype dtype) {
    switch (dtype) {
    case CC_INT8:
    case CC_UINT8:
    case CC_BOOL: return 1;
    case CC_BFLOAT16:
    case CC_FLOAT16:
    case CC_INT16:
    case CC_UINT16: return 2;
    case CC_FLOAT32:
    case CC_INT32:
    case CC_UINT32: return 4;
    case CC_FLOAT64:
    case CC_INT64:
    case CC_UINT64: return 8;
    }
    return 0;
}
