/* The host function `infer`: the model of another task, run in the middle of tona_run.
 *
 * The task's document names the models that its module may run (`infers = ["recognise"]`). Inputs
 *and outputs are in the order of that task's ports, constants left out. An output whose `data` is 0
 *is placed by the host, with tona_alloc; otherwise `size_bytes` says how much room there is.
 */
#ifndef TONA_INFER_H
#define TONA_INFER_H

#include "guest.h"

/* What infer gives. After INFER_FAILED or INFER_AGAIN, tona_run may return any error: the caller is
 *told why the model did not run. */
enum {
    INFER_DONE = 0,
    INFER_UNKNOWN = -1, /* the document names no such task */
    INFER_REFUSED = -2, /* a descriptor or an address is wrong */
    INFER_NO_ROOM = -3, /* nothing was written but how much each output takes */
    INFER_FAILED = -4,  /* the model takes something else, or failed */
    INFER_AGAIN = -5,   /* it is busy or not there, or the time is over */
};

__attribute__((import_module("tona"), import_name("infer"))) extern int32_t tona_infer(
    const char *name, uint32_t name_length, const Port *inputs, uint32_t n_inputs, Port *outputs,
    uint32_t n_outputs);

#define INFER(name, inputs, n_inputs, outputs, n_outputs) \
    tona_infer(name, sizeof(name) - 1, inputs, n_inputs, outputs, n_outputs)

#endif
