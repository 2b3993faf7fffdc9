/* fuse: the parts that four cameras see of the ground -> one bird's-eye view.
 *
 *   in   front, back, left, right  uint8[-1,-1,3]   black where nothing is seen
 *   out  view                      uint8[-1,-1,3]   as wide as `front`, as high as `left`
 *
 * `front` lies along the upper edge, `back` along the lower one, `left` and `right` along the sides;
 * two neighbours overlap in a corner. The car is drawn in the middle, its bonnet upwards.
 *
 * In a corner both are mixed by the direction in which a pixel lies from the car's corner: the
 * nearer to a camera's side, the more of it. What one does not see comes from the other alone. Before
 * that each camera's channels are scaled, so that neighbours agree on the mean of their corner; the
 * scales have the product 1, and what four corners disagree on is spread evenly over them.
 */
#include <math.h>

#include "../../reading/guests/image.h"

enum { FRONT, BACK, LEFT, RIGHT, CAMERAS, MAX_SIDE = 2048, CORNERS = 4, CAR_GREY = 52 };
#define BAND_FROM 0.3f
#define BAND_TO 0.7f
#define GAIN_MIN 0.5
#define GAIN_MAX 2.0

/* The corners in a ring, and the two cameras of each: that before the corner and that after it. */
static const int BEFORE[CORNERS] = {FRONT, RIGHT, BACK, LEFT};
static const int AFTER[CORNERS] = {RIGHT, BACK, LEFT, FRONT};

typedef struct {
    Image part[CAMERAS];
    int x[CAMERAS];
    int y[CAMERAS];
    int width;
    int height;
} Layout;

static const uint8_t *pixel_at(const Layout *layout, int camera, int x, int y) {
    const Image *part = &layout->part[camera];
    return part->rgb + 3 * ((size_t)(y - layout->y[camera]) * part->width + (x - layout->x[camera]));
}

static inline int is_seen(const uint8_t *rgb) { return (rgb[0] | rgb[1] | rgb[2]) != 0; }

static int lay_out(const Port *in, Layout *layout) {
    for (int i = 0; i < CAMERAS; i++)
        if (!read_image(&in[i], MAX_SIDE, &layout->part[i])) return 0;
    const Image *part = layout->part;
    layout->width = part[FRONT].width, layout->height = part[LEFT].height;
    for (int i = 0; i < CAMERAS; i++) layout->x[i] = layout->y[i] = 0;
    layout->x[RIGHT] = layout->width - part[RIGHT].width;
    layout->y[BACK] = layout->height - part[BACK].height;
    return part[BACK].width == layout->width && part[RIGHT].height == layout->height &&
           part[LEFT].width + part[RIGHT].width < layout->width &&
           part[FRONT].height + part[BACK].height < layout->height;
}

/* Columns or rows from..to of a corner. */
typedef struct {
    int x0, x1, y0, y1;
} Area;

static Area corner_area(const Layout *layout, int corner) {
    int across = BEFORE[corner] == FRONT || BEFORE[corner] == BACK ? AFTER[corner] : BEFORE[corner];
    int along = across == AFTER[corner] ? BEFORE[corner] : AFTER[corner];
    int x = layout->x[across], y = layout->y[along];
    return (Area){x, x + layout->part[across].width, y, y + layout->part[along].height};
}

/* By what the camera after a corner has to be scaled, beside the one before it, to agree; its log. */
static void disagreement(const Layout *layout, int corner, double log_ratio[3]) {
    Area area = corner_area(layout, corner);
    uint64_t sum[2][3] = {{0}};
    for (int y = area.y0; y < area.y1; y++) {
        const uint8_t *a = pixel_at(layout, BEFORE[corner], area.x0, y);
        const uint8_t *b = pixel_at(layout, AFTER[corner], area.x0, y);
        uint32_t row[2][3] = {{0}};
        for (int x = area.x0; x < area.x1; x++, a += 3, b += 3) {
            uint32_t both = -(uint32_t)(is_seen(a) & is_seen(b));
            for (int channel = 0; channel < 3; channel++)
                row[0][channel] += a[channel] & both, row[1][channel] += b[channel] & both;
        }
        for (int channel = 0; channel < 3; channel++)
            sum[0][channel] += row[0][channel], sum[1][channel] += row[1][channel];
    }
    for (int channel = 0; channel < 3; channel++)
        log_ratio[channel] = log((double)(sum[0][channel] + 1) / (double)(sum[1][channel] + 1));
}

/* Fills a table of the scaled value of every level, for each camera and channel. */
static void balance(const Layout *layout, uint8_t (*scaled)[3][256]) {
    double ratio[CORNERS][3];
    for (int corner = 0; corner < CORNERS; corner++) disagreement(layout, corner, ratio[corner]);
    for (int channel = 0; channel < 3; channel++) {
        double around = 0, at = 0, sum = 0, gain[CAMERAS];
        for (int corner = 0; corner < CORNERS; corner++) around += ratio[corner][channel];
        for (int corner = 0; corner < CORNERS; corner++) {
            gain[BEFORE[corner]] = at;
            sum += at;
            at += ratio[corner][channel] - around / CORNERS;
        }
        for (int camera = 0; camera < CAMERAS; camera++) {
            double scale = exp(gain[camera] - sum / CAMERAS);
            scale = __builtin_fmin(GAIN_MAX, __builtin_fmax(GAIN_MIN, scale));
            for (int level = 0; level < 256; level++)
                scaled[camera][channel][level] =
                    (uint8_t)clamp_int((int)__builtin_rint(level * scale), 0, 255);
        }
    }
}

/* The share of `front` or `back` in a corner, 0 to 1: by the direction from the car's corner. */
static inline float share_along(float dx, float dy) {
    float part = (dy / (dx + dy) - BAND_FROM) / (BAND_TO - BAND_FROM);
    return __builtin_fmaxf(0, __builtin_fminf(1, part));
}

/* One camera's part of a row, brought to the others' light. */
static inline void scale_row(uint8_t (*scaled)[256], const uint8_t *from, int count, uint8_t *rgb) {
    for (int i = 0; i < count; i++, from += 3, rgb += 3)
        for (int channel = 0; channel < 3; channel++)
            rgb[channel] = scaled[channel][from[channel]];
}

/* The part of a row that two cameras see, from column x on. */
static void mix_row(const Layout *layout, uint8_t (*scaled)[3][256], int along, int across, int x,
                    int y, uint8_t *rgb) {
    const Image *front = &layout->part[along], *side = &layout->part[across];
    const uint8_t *a = pixel_at(layout, along, x, y), *b = pixel_at(layout, across, x, y);
    float dy = (float)(along == FRONT ? front->height - y : y - layout->y[BACK] + 1);
    float first = across == LEFT ? (float)side->width : 1, step = across == LEFT ? -1 : 1;
    float shares[MAX_SIDE];
    for (int i = 0; i < side->width; i++) shares[i] = share_along(first + step * (float)i, dy);
    for (int i = 0; i < side->width; i++, a += 3, b += 3, rgb += 3) {
        float share = !is_seen(b) ? 1 : !is_seen(a) ? 0 : shares[i];
        if (share == 0 || share == 1) {
            /* one alone: most of a corner lies beyond the band */
            int alone = share == 1 ? along : across;
            scale_row(scaled[alone], alone == along ? a : b, 1, rgb);
            continue;
        }
        for (int channel = 0; channel < 3; channel++) {
            float value = share * (float)scaled[along][channel][a[channel]] +
                          (1 - share) * (float)scaled[across][channel][b[channel]];
            rgb[channel] = (uint8_t)__builtin_rintf(value);
        }
    }
}

/* Everything but the car. */
static void fuse_row(const Layout *layout, uint8_t (*scaled)[3][256], int y, uint8_t *rgb) {
    const Image *left = &layout->part[LEFT], *right = &layout->part[RIGHT];
    int along = y < layout->part[FRONT].height ? FRONT : y >= layout->y[BACK] ? BACK : CAMERAS;
    uint8_t *beyond = rgb + 3 * layout->x[RIGHT];
    if (along == CAMERAS) {
        scale_row(scaled[LEFT], left->rgb + (size_t)3 * left->width * y, left->width, rgb);
        scale_row(scaled[RIGHT], right->rgb + (size_t)3 * right->width * y, right->width, beyond);
        return;
    }
    const Image *part = &layout->part[along];
    const uint8_t *from = part->rgb + (size_t)3 * part->width * (y - layout->y[along]);
    mix_row(layout, scaled, along, LEFT, 0, y, rgb);
    scale_row(scaled[along], from + 3 * left->width, layout->x[RIGHT] - left->width,
              rgb + 3 * left->width);
    mix_row(layout, scaled, along, RIGHT, layout->x[RIGHT], y, beyond);
}

/* A plain car seen from above: a grey body with round corners, windows towards front and back. */
static void paint_car(const Layout *layout, int x, int y, uint8_t *rgb) {
    int left = layout->part[LEFT].width, right = layout->x[RIGHT];
    int top = layout->part[FRONT].height, bottom = layout->y[BACK];
    int round = (right - left) / 4, width = right - left, height = bottom - top;
    int dx = max_int(0, max_int(left + round - x, x - (right - 1 - round)));
    int dy = max_int(0, max_int(top + round - y, y - (bottom - 1 - round)));
    int body = dx * dx + dy * dy <= round * round;
    int down = y - top, pane = x - left > width / 6 && right - x > width / 6 &&
                               ((down > height * 5 / 20 && down < height * 8 / 20) ||
                                (down > height * 16 / 20 && down < height * 18 / 20));
    rgb[0] = rgb[1] = rgb[2] = (uint8_t)(!body ? 0 : pane ? 3 * CAR_GREY : CAR_GREY);
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Layout layout;
    if (n_in != CAMERAS || n_out != 1 || !lay_out(in, &layout))
        return fail(BAD_INPUT,
                    "fuse takes front, back, left, right uint8[-1,-1,3] of up to # pixels a side: "
                    "front as wide as back, left as high as right, room for a car between them",
                    MAX_SIDE, 0);
    uint8_t(*scaled)[3][256] = take(sizeof(uint8_t[CAMERAS][3][256]));
    uint8_t *view = take((uint64_t)3 * layout.width * layout.height);
    if (!scaled || !view) return fail_memory();
    balance(&layout, scaled);
    for (int y = 0; y < layout.height; y++) {
        uint8_t *row = view + (size_t)3 * layout.width * y;
        fuse_row(&layout, scaled, y, row);
        if (y < layout.part[FRONT].height || y >= layout.y[BACK]) continue;
        for (int x = layout.part[LEFT].width; x < layout.x[RIGHT]; x++)
            paint_car(&layout, x, y, row + 3 * x);
    }
    out->dims[0] = (uint32_t)layout.height;
    out->dims[1] = (uint32_t)layout.width;
    out->dims[2] = 3;
    give(out, view, UINT8, 3);
    return OK;
}
