/* crop: image and the detector's probability map -> one straight strip for each line of text.
 *
 *   in   image  uint8[-1,-1,3]
 *        map    float32[1,1,-1,-1]   probability of text, over the canvas that `prepare` made
 *        size   int32[2]             height and width of the file, for the coordinates of `boxes`
 *   out  crops  float32[-1,3,48,-1]  strips in reading order, padded with 0 to a common width; one
 *                                    blank strip when there is no text, for a recogniser takes no
 *                                    empty batch
 *        boxes  float32[-1,4,2]      corners x, y in the file, clockwise from the upper left
 *        count  int32[1]             strips that hold text: all, or none of the one
 *        found  int32[1]             lines found; above `count` when the bounds below cut some off
 */
#include "boxes.h"

enum {
    MAX_IMAGE_SIDE = 8192,
    MAX_MAP_SIDE = 16384,
    STRIP_HEIGHT = 48,
    STRIP_MIN_WIDTH = 320,
    STRIP_MAX_WIDTH = 2048, /* a longer line is squeezed */
    MAX_STRIPS = 256,
    MAX_COLUMNS = 65536, /* of all strips together: bounds the recogniser's work and its output */
    CUBIC_STEPS = 32,
    SAME_LINE = 10 /* boxes whose tops lie this close stand in one line, read left to right */
};

/* Corners on whole pixels of the canvas: upper left, upper right, lower right, lower left. */
typedef struct {
    float x[4];
    float y[4];
} Quad;

static float gap(const Quad *quad, int a, int b) {
    float dx = quad->x[a] - quad->x[b], dy = quad->y[a] - quad->y[b];
    return __builtin_sqrtf(dx * dx + dy * dy);
}

static void swap_corners(Quad *quad, int a, int b) {
    float x = quad->x[a], y = quad->y[a];
    quad->x[a] = quad->x[b], quad->y[a] = quad->y[b];
    quad->x[b] = x, quad->y[b] = y;
}

/* Orders corners: the two leftmost are the left side, in each pair the higher one is the upper. */
static void order_corners(Quad *quad) {
    for (int k = 1; k < 4; k++)
        for (int i = k; i > 0 && quad->x[i] < quad->x[i - 1]; i--) swap_corners(quad, i, i - 1);
    if (quad->y[1] < quad->y[0]) swap_corners(quad, 0, 1);
    if (quad->y[3] < quad->y[2]) swap_corners(quad, 2, 3);
    /* now upper left, lower left, upper right, lower right */
    swap_corners(quad, 1, 2);
    swap_corners(quad, 2, 3);
}

static float to_canvas(double at, int map_side, int canvas_side) {
    double value = __builtin_rint(at / map_side * canvas_side);
    return (float)__builtin_fmax(0, __builtin_fmin(value, canvas_side - 1));
}

/* Brings boxes from the map to the canvas and drops what is too small to be text. */
static int place_boxes(const Rectangle *boxes, int count, const Map *map, Image canvas, Quad *to) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        Quad quad;
        for (int k = 0; k < 4; k++) {
            quad.x[k] = to_canvas(boxes[i].corner[k].x, map->width, canvas.width);
            quad.y[k] = to_canvas(boxes[i].corner[k].y, map->height, canvas.height);
        }
        order_corners(&quad);
        if ((int)gap(&quad, 0, 1) > 3 && (int)gap(&quad, 0, 3) > 3) to[kept++] = quad;
    }
    return kept;
}

/* Top to bottom, and left to right where tops lie close together. */
static void sort_reading(Quad *quads, int count) {
    for (int i = 1; i < count; i++)
        for (int k = i; k > 0; k--) {
            Quad *a = &quads[k - 1], *b = &quads[k];
            if (a->y[0] < b->y[0] || (a->y[0] == b->y[0] && a->x[0] <= b->x[0])) break;
            Quad swap = *a;
            *a = *b, *b = swap;
        }
    for (int i = 0; i + 1 < count; i++)
        for (int k = i; k >= 0; k--) {
            Quad *a = &quads[k], *b = &quads[k + 1];
            if (__builtin_fabsf(b->y[0] - a->y[0]) >= SAME_LINE || b->x[0] >= a->x[0]) break;
            Quad swap = *a;
            *a = *b, *b = swap;
        }
}

/* Weights of the four neighbours at a fraction of a pixel (cubic convolution, a = -0.75). */
static void cubic_weights(float weights[4], float t) {
    const float a = -0.75f;
    float s = t + 1, r = 1 - t;
    weights[0] = ((a * s - 5 * a) * s + 8 * a) * s - 4 * a;
    weights[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
    weights[2] = ((a + 2) * r - (a + 3)) * r * r + 1;
    weights[3] = 1 - weights[0] - weights[1] - weights[2];
}

static float cubic_table[CUBIC_STEPS][4];

static void sample(Image from, int x32, int y32, uint8_t *rgb) {
    const float *wx = cubic_table[x32 & 31], *wy = cubic_table[y32 & 31];
    float sum[3] = {0, 0, 0};
    int columns[4];
    for (int k = 0; k < 4; k++) columns[k] = 3 * clamp_int((x32 >> 5) - 1 + k, 0, from.width - 1);
    for (int k = 0; k < 4; k++) {
        int y = clamp_int((y32 >> 5) - 1 + k, 0, from.height - 1);
        const uint8_t *row = from.rgb + (size_t)3 * from.width * y;
        for (int channel = 0; channel < 3; channel++)
            sum[channel] += wy[k] * (wx[0] * row[columns[0] + channel] +
                                     wx[1] * row[columns[1] + channel] +
                                     wx[2] * row[columns[2] + channel] +
                                     wx[3] * row[columns[3] + channel]);
    }
    for (int channel = 0; channel < 3; channel++)
        rgb[channel] = (uint8_t)clamp_int((int)__builtin_rintf(sum[channel]), 0, 255);
}

/* Cuts the quad out and straightens it by the perspective that takes a rectangle to it (Heckbert,
 * "Fundamentals of Texture Mapping and Image Warping", 1989, unit square to quadrilateral). */
static void straighten(Image from, const Quad *q, Image to) {
    double dx1 = q->x[1] - q->x[2], dx2 = q->x[3] - q->x[2], dy1 = q->y[1] - q->y[2];
    double dy2 = q->y[3] - q->y[2], sx = q->x[0] - q->x[1] + q->x[2] - q->x[3];
    double sy = q->y[0] - q->y[1] + q->y[2] - q->y[3], det = dx1 * dy2 - dx2 * dy1;
    double g = det != 0 ? (sx * dy2 - dx2 * sy) / det : 0;
    double h = det != 0 ? (dx1 * sy - sx * dy1) / det : 0;
    double a = q->x[1] - q->x[0] + g * q->x[1], b = q->x[3] - q->x[0] + h * q->x[3];
    double d = q->y[1] - q->y[0] + g * q->y[1], e = q->y[3] - q->y[0] + h * q->y[3];
    for (int row = 0; row < to.height; row++)
        for (int column = 0; column < to.width; column++) {
            double u = (double)column / to.width, v = (double)row / to.height;
            double scale = CUBIC_STEPS / (g * u + h * v + 1);
            int x32 = (int)__builtin_rint((a * u + b * v + q->x[0]) * scale);
            int y32 = (int)__builtin_rint((d * u + e * v + q->y[0]) * scale);
            sample(from, x32, y32, to.rgb + 3 * ((size_t)row * to.width + column));
        }
}

static void turn_left(Image from, Image to) {
    for (int y = 0; y < to.height; y++)
        for (int x = 0; x < to.width; x++) {
            const uint8_t *in = from.rgb + 3 * ((size_t)x * from.width + from.width - 1 - y);
            uint8_t *out = to.rgb + 3 * ((size_t)y * to.width + x);
            out[0] = in[0], out[1] = in[1], out[2] = in[2];
        }
}

/* Size of the straightened box, as cut out and as laid down: a column of text is turned. */
static int measure(const Quad *quad, Image *cut, Image *laid) {
    cut->width = (int)__builtin_fmaxf(gap(quad, 0, 1), gap(quad, 2, 3));
    cut->height = (int)__builtin_fmaxf(gap(quad, 0, 3), gap(quad, 1, 2));
    int turned = 2 * cut->height >= 3 * cut->width;
    laid->width = turned ? cut->height : cut->width;
    laid->height = turned ? cut->width : cut->height;
    return turned;
}

static int common_width(const Quad *quads, int count) {
    int widest = STRIP_MIN_WIDTH;
    for (int i = 0; i < count; i++) {
        Image cut, laid;
        measure(&quads[i], &cut, &laid);
        widest = max_int(widest, STRIP_HEIGHT * laid.width / laid.height);
    }
    return min_int(widest, STRIP_MAX_WIDTH);
}

/* Writes one strip, its planes `width` floats a row; 0 when there is no memory. */
static int write_strip(Image canvas, const Quad *quad, float *planes, int width) {
    uint32_t mark = arena_top;
    Image cut, laid, strip = {.height = STRIP_HEIGHT};
    int turned = measure(quad, &cut, &laid);
    strip.width = (STRIP_HEIGHT * laid.width + laid.height - 1) / laid.height;
    strip.width = min_int(strip.width, width);
    uint64_t bytes = (uint64_t)3 * cut.width * cut.height;
    cut.rgb = take(bytes);
    laid.rgb = turned ? take(bytes) : cut.rgb;
    strip.rgb = take((uint64_t)3 * strip.width * strip.height);
    if (!cut.rgb || !laid.rgb || !strip.rgb) return 0;
    straighten(canvas, quad, cut);
    if (turned) turn_left(cut, laid);
    if (!resize(laid, strip)) return 0;
    normalise(strip, planes, width);
    arena_top = mark;
    return 1;
}

static float *file_corners(const Quad *quads, int count, Image image, int left, int top,
                           const int32_t *size) {
    float *corners = take((uint64_t)count * 8 * sizeof(float));
    if (!corners) return 0;
    float across = (float)size[1] / (float)image.width, down = (float)size[0] / (float)image.height;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 4; k++) {
            float x = (quads[i].x[k] - (float)left) * across;
            float y = (quads[i].y[k] - (float)top) * down;
            corners[8 * i + 2 * k] = __builtin_fmaxf(0, __builtin_fminf(x, (float)size[1]));
            corners[8 * i + 2 * k + 1] = __builtin_fmaxf(0, __builtin_fminf(y, (float)size[0]));
        }
    return corners;
}

static int read_inputs(const Port *in, uint32_t n_in, uint32_t n_out, Image *image, Map *map) {
    if (n_in != 3 || n_out != 4 || !read_image(&in[0], MAX_IMAGE_SIDE, image) ||
        !holds(&in[1], FLOAT32, 4) || in[1].dims[0] != 1 || in[1].dims[1] != 1 ||
        !holds(&in[2], INT32, 1) || in[2].dims[0] != 2)
        return fail(BAD_INPUT,
                    "crop takes image uint8[-1,-1,3], map float32[1,1,-1,-1], size int32[2] and "
                    "gives crops, boxes, count, found", 0, 0);
    uint32_t height = in[1].dims[2], width = in[1].dims[3];
    if (height < 1 || width < 1 || height > MAX_MAP_SIDE || width > MAX_MAP_SIDE)
        return fail(TOO_LARGE, "the map has # x # values, a side may have 1 to 16384", width,
                    height);
    *map = (Map){tensor(&in[1]), (int)width, (int)height};
    return OK;
}

static void give_one(Port *port, int32_t *slot, int value) {
    *slot = value;
    port->dims[0] = 1;
    give(port, slot, INT32, 1);
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Image image;
    Map map;
    int left, top, code = read_inputs(in, n_in, n_out, &image, &map);
    if (code) return code;
    Image canvas = make_canvas(image, &left, &top);
    Rectangle *boxes = take(MAX_CANDIDATES * sizeof(Rectangle));
    Quad *quads = take(MAX_CANDIDATES * sizeof(Quad));
    int32_t *counts = take(2 * sizeof(int32_t));
    if (!canvas.rgb || !boxes || !quads || !counts) return fail_memory();
    int found = find_boxes(&map, boxes);
    if (found < 0) return fail_memory();
    found = place_boxes(boxes, found, &map, canvas, quads);
    sort_reading(quads, found);
    int count = min_int(found, MAX_STRIPS), width = common_width(quads, count);
    count = min_int(count, MAX_COLUMNS / width);
    int strips = max_int(count, 1);
    size_t strip_floats = (size_t)3 * STRIP_HEIGHT * (size_t)width;
    float *crops = take((uint64_t)strips * strip_floats * sizeof(float));
    float *corners = file_corners(quads, count, image, left, top, tensor(&in[2]));
    if (!crops || !corners) return fail_memory();
    __builtin_memset(crops, 0, (size_t)strips * strip_floats * sizeof(float));
    for (int step = 0; step < CUBIC_STEPS; step++)
        cubic_weights(cubic_table[step], (float)step / CUBIC_STEPS);
    for (int i = 0; i < count; i++)
        if (!write_strip(canvas, &quads[i], crops + (size_t)i * strip_floats, width))
            return fail_memory();
    out[0].dims[0] = (uint32_t)strips, out[0].dims[1] = 3;
    out[0].dims[2] = STRIP_HEIGHT, out[0].dims[3] = (uint32_t)width;
    give(&out[0], crops, FLOAT32, 4);
    out[1].dims[0] = (uint32_t)count, out[1].dims[1] = 4, out[1].dims[2] = 2;
    give(&out[1], corners, FLOAT32, 3);
    give_one(&out[2], counts, count);
    give_one(&out[3], counts + 1, found);
    return OK;
}
