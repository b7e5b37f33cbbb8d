/* An external delegate of LiteRT for tests: it takes FULLY_CONNECTED of floats and computes it by plain loops.
 *
 * Options: most=N takes N nodes at most; refuses=1 cannot be made; fails=1 fails when it runs.
 * What LiteRT passes is declared here as far as it is used, in the order of tflite/core/c/common.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int size; int data[]; } Ints;
typedef struct { float scale; int32_t zero_point; } Params;
typedef struct { int type; void *params; } Quantization;
struct Delegate;

typedef struct {
    int type;
    void *data;
    Ints *dims;
    Params params;
    int allocation_type;
    size_t bytes;
    const void *allocation;
    const char *name;
    struct Delegate *delegate;
    int buffer_handle;
    bool data_is_stale;
    bool is_variable;
    Quantization quantization;
    void *sparsity;
    const Ints *dims_signature;
} Tensor;

typedef struct {
    Ints *inputs, *outputs, *intermediates, *temporaries;
    void *user_data, *builtin_data;
    const void *custom_initial_data;
    int custom_initial_data_size;
    struct Delegate *delegate;
    bool might_have_side_effect;
} Node;

struct Context;
typedef struct {
    void *(*init)(struct Context *, const char *, size_t);
    void (*free)(struct Context *, void *);
    int (*prepare)(struct Context *, Node *);
    int (*invoke)(struct Context *, Node *);
    const char *(*profiling_string)(const struct Context *, const Node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
    void *registration_external;
    void *async_kernel;
    uint64_t inplace_operator;
} Registration;

typedef struct Context {
    size_t tensors_size;
    int (*GetExecutionPlan)(struct Context *, Ints **);
    Tensor *tensors;
    void *impl;
    void *ResizeTensor;
    void (*ReportError)(struct Context *, const char *, ...);
    void *AddTensors;
    int (*GetNodeAndRegistration)(struct Context *, int, Node **, Registration **);
    int (*ReplaceNodeSubsetsWithDelegateKernels)(struct Context *, Registration, const Ints *, struct Delegate *);
} Context;

typedef struct Delegate {
    void *data;
    int (*Prepare)(Context *, struct Delegate *);
    void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
    int64_t flags;
    void *opaque_delegate_builder;
} Delegate;

typedef struct { Delegate *delegate; Ints *nodes, *inputs, *outputs; } DelegateParams;
typedef struct { int most; bool fails; } Options;
/* The steps of one part of the graph: indices of tensors, and where a result lies that LiteRT has no place for, since
 * nothing outside the part reads it. */
typedef struct { int x, w, b, y; bool has_relu; float *own; } Step;
typedef struct { int count; bool fails; Step steps[]; } Part;

enum { FULLY_CONNECTED = 9, FLOAT32 = 1, OK = 0, ERROR = 1 };

static void *init(Context *context, const char *buffer, size_t length) {
    (void)length;
    const DelegateParams *params = (const DelegateParams *)buffer;
    Part *part = malloc(sizeof(Part) + params->nodes->size * sizeof(Step));
    part->count = params->nodes->size;
    part->fails = ((Options *)params->delegate->data)->fails;
    for (int i = 0; i < part->count; i++) {
        Node *node;
        Registration *kind;
        context->GetNodeAndRegistration(context, params->nodes->data[i], &node, &kind);
        part->steps[i] = (Step){node->inputs->data[0], node->inputs->data[1],
                                node->inputs->size > 2 ? node->inputs->data[2] : -1, node->outputs->data[0],
                                *(int *)node->builtin_data == 1, NULL};
    }
    return part;
}

static void release(Context *context, void *given) {
    (void)context;
    Part *part = given;
    for (int i = 0; i < part->count; i++) free(part->steps[i].own);
    free(part);
}

/* Where a tensor's values lie. */
static float *values(Context *context, Part *part, int tensor) {
    for (int i = 0; i < part->count; i++)
        if (part->steps[i].y == tensor && part->steps[i].own) return part->steps[i].own;
    return context->tensors[tensor].data;
}

static int prepare(Context *context, Node *node) {
    (void)context;
    (void)node;
    return OK;
}

static int invoke(Context *context, Node *node) {
    Part *part = node->user_data;
    if (part->fails) {
        context->ReportError(context, "the toy accelerator is on fire");
        return ERROR;
    }
    for (int i = 0; i < part->count; i++) {
        Step *step = &part->steps[i];
        if (!context->tensors[step->y].data && !step->own) step->own = malloc(context->tensors[step->y].bytes);
        const float *x = values(context, part, step->x), *w = context->tensors[step->w].data;
        const float *b = step->b >= 0 ? context->tensors[step->b].data : NULL;
        float *y = values(context, part, step->y);
        int outs = context->tensors[step->w].dims->data[0], ins = context->tensors[step->w].dims->data[1];
        int rows = (int)(context->tensors[step->x].bytes / sizeof(float)) / ins;
        for (int row = 0; row < rows; row++)
            for (int out = 0; out < outs; out++) {
                float sum = b ? b[out] : 0;
                for (int in = 0; in < ins; in++) sum += x[row * ins + in] * w[out * ins + in];
                y[row * outs + out] = step->has_relu && sum < 0 ? 0 : sum;
            }
    }
    return OK;
}

static int take(Context *context, Delegate *delegate) {
    Ints *plan;
    if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
    Ints *taken = malloc(sizeof(Ints) + plan->size * sizeof(int));
    taken->size = 0;
    for (int i = 0; i < plan->size; i++) {
        Node *node;
        Registration *kind;
        if (context->GetNodeAndRegistration(context, plan->data[i], &node, &kind) != OK) return ERROR;
        if (kind->builtin_code == FULLY_CONNECTED && context->tensors[node->inputs->data[0]].type == FLOAT32 &&
            taken->size < ((Options *)delegate->data)->most)
            taken->data[taken->size++] = plan->data[i];
    }
    Registration kernel = {0};
    kernel.init = init;
    kernel.free = release;
    kernel.prepare = prepare;
    kernel.invoke = invoke;
    kernel.custom_name = "ToyDelegate";
    kernel.version = 1;
    int told = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, taken, delegate);
    free(taken);
    return told;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    Options *options = malloc(sizeof(Options));
    *options = (Options){1000, false};
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(keys[i], "most")) options->most = atoi(values[i]);
        if (!strcmp(keys[i], "fails")) options->fails = true;
        if (!strcmp(keys[i], "refuses")) {
            if (report) report("the toy accelerator is not plugged in");
            free(options);
            return NULL;
        }
    }
    Delegate *made = calloc(1, sizeof(Delegate));
    made->data = options;
    made->Prepare = take;
    return made;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
    if (!delegate) return; /* LiteRT 2.3 ends what was never made, too. */
    free(delegate->data);
    free(delegate);
}
