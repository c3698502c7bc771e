/* The head of the generated extension module: everything that cdef.h declares. */
#include "csrc/collectives.h"
#include "csrc/collectives_trace.h"

#include "csrc/kernels/kernels.h"
#include "csrc/plan/plan.h"
#include "transport/sim.h"
