/* What Python sees of C. Not compiled: bindings/build.py replaces each #include by the declarations
 * of that header, reduced to what cffi understands. So a declaration exists once, in the header
 * that C uses, and cannot drift. */

/* The public interface. */
#include "csrc/collectives.h"
#include "csrc/collectives_trace.h"

/* For the tests in Python: plans and kernels, which are pure, and the simulated world. */
#include "csrc/kernels/kernels.h"
#include "csrc/plan/plan.h"
#include "transport/sim.h"
