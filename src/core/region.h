/* region.h - the reserved range, its units, and the way from an address to what is known of it.
 *
 * Owns: one reserved range of address space (64 GiB where there is room) that holds every arena
 * block, cut into units of 16 pages; one struct ma_unit per unit, out of line; a pool for the other
 * metadata. A unit is one slab of a dense heap, or begins or continues a large block.
 * Lock: a mutex inside, for taking and giving back runs of units and pool memory.
 * Invariant: ma_owns (p) => ma_unit_of (p) is p's unit; the first and the last unit are never taken,
 * so that they guard the rest.
 */
#ifndef MA_REGION_H
#define MA_REGION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "os.h"
#include "runtime.h"

#define MA_HOT __attribute__ ((hot))
#define MA_COLD __attribute__ ((cold, noinline))
#define MA_INLINE static inline __attribute__ ((always_inline))
/* Said where a variable is declared, it saves the way through the global offset table. */
#define MA_HIDDEN __attribute__ ((visibility ("hidden")))
#define likely(x) __builtin_expect (!!(x), 1)
#define unlikely(x) __builtin_expect (!!(x), 0)

enum
{
  MA_UNIT_PAGES = 16,
  MA_SLAB_PAGES = 15, /* the sixteenth is the guard */
  MA_SLOTS = 2048,    /* most slots of a slab; larger pages leave a rest unused */
  MA_WORDS = MA_SLOTS / 64
};
#define MA_UNIT_SHIFT (MA_PAGE_SHIFT + 4)
#define MA_UNIT ((size_t)1 << MA_UNIT_SHIFT)
#define MA_NO_UNIT UINT32_MAX

enum ma_unit_kind
{
  MA_UNIT_FREE,  /* nobody's */
  MA_UNIT_IDLE,  /* a local arena's, not in use */
  MA_UNIT_DENSE, /* a slab */
  MA_UNIT_LARGE, /* first of a large block */
  MA_UNIT_TAIL   /* further one of a large block */
};

/* What the kernel was told of a unit and holds until the opposite is said. */
enum
{
  MA_UNIT_OPEN = 1,      /* accessible */
  MA_UNIT_GUARDED = 2,   /* its last page is a guard */
  MA_UNIT_DUMPED = 4,    /* included in dumps */
  MA_UNIT_FORK_WIPE = 8, /* wiped, or absent, in children */
  MA_UNIT_FORK_ABSENT = 16,
  MA_UNIT_SECRET = 32, /* memfd_secret */
  MA_UNIT_UNSURE = 64 /* all of it may hold or not, as taking it back ended half-way: to be said again */
};

enum ma_large_state
{
  MA_LARGE_LIVE = 1,
  MA_LARGE_FREED
};

/* All that is known of 16 pages. The first cache line is what a free reads; a hint and a bit word are what
 * it writes. Sized so that neighbours do not fall into the same cache sets. */
struct ma_unit
{
  char *last; /* slot that was taken last, and is often the next one as well: where it is, */
  struct ma_local *local; /* of its arena; the owner of a slab */
  uint16_t *sizes;        /* by slot: 1 + the requested size; 0 where there is no live block */
  uint64_t inverse;       /* ceil (2^32 / slot): a division by multiplication */
  uint16_t slot;          /* bytes */
  uint16_t least;         /* what is in SIZES of blocks whose free takes the fast path, */
  uint16_t span;          /* up to LEAST + SPAN */
  uint16_t guess;         /* and its number */
  uint8_t kind;
  uint8_t group;   /* of slots, see slot.h; 0 where there are none */
  uint8_t hint;    /* word of FREE to look at first */
  uint8_t middle;  /* of slot.h, for slots of up to 144 bytes; */
  uint8_t step[6]; /* for MA_MIXED */
  uint8_t class;
  uint8_t rest;      /* least canary bytes after a block */
  uint16_t avail;    /* slots on pages that are open */
  uint8_t is_tagged; /* blocks have tags, see tag.h; here, so that a free knows it of any unit */
  union
  {
    struct
    {
      uint16_t away;          /* bit by page: given back to the kernel, with all its slots */
      _Atomic uint8_t queued; /* in its local arena's queue of remote frees */
      uint8_t is_full;        /* neither in its class's list nor current */
      uint8_t is_block;       /* anything but a slab of objects */
    };
    uint64_t is_special; /* any of these: not for the fast path of objects */
  };
  /* The second line: what is seldom looked at. */
  _Atomic uint8_t large; /* enum ma_large_state */
  uint8_t state;         /* MA_UNIT_OPEN, ... */
  uint8_t opened;        /* pages, from the first */
  uint8_t had_remote;    /* another thread freed in it since the heap was taken */
  uint8_t turn;          /* its local arena's when it became current last */
  uint16_t locked;       /* bit by page */
  /* Of a slab of objects, bit by word of FREE: may have a free slot. One that has, and no bit, is found when
   * none is left that has one. */
  uint32_t rooms;
  struct ma_unit *next; /* class list, warm list */
  struct ma_unit *previous;
  struct ma_unit *queue_next;
  struct ma_unit *heap_next; /* first units of a local arena's heaps; large blocks of an arena */
  struct ma_unit *heap_previous;
  uint32_t heap_units;
  int fork_copy; /* during a fork: 1 + the descriptor of what the child gets, minus an errno, or 0 */
  union
  {
    uint64_t free[MA_WORDS]; /* bit by slot: may be given out. The owner's. */
    struct
    {
      char *block; /* what malloc returned */
      size_t size; /* as requested */
      char *end;   /* of its pages, where the trailing guard begins */
      size_t pages;
      uint32_t units; /* of the run */
      uint32_t back;  /* of a tail: units back to the first */
      unsigned bin;
      unsigned epoch;  /* of a warm one: when it came to be */
      uint32_t serial; /* of the arena, which may be gone when the unit still tells of the block */
      int is_locked;
      unsigned tag;       /* of the block, or of the last one */
      unsigned tail_most; /* canary bytes after the block, if that ends before the guard */
      int is_new;         /* may have pages that are not present, as nobody has written them, */
      int is_sparse;      /* and has: they were not written when it was wiped last */
    };
  };
  _Atomic uint64_t
      remote[MA_WORDS]; /* bit by slot: freed by another thread, wiped, not yet in FREE */
} __attribute__ ((aligned (128)));

_Static_assert (offsetof (struct ma_unit, large) <= 64, "what a free reads is one cache line");

/* Written once, under the lock, then read-only memory. ma_region is its first member. */
struct ma_sealed
{
  struct ma_region region;
  struct ma_unit *units;
  uint64_t canary;       /* fills the bytes after a block; no byte of it is zero; */
  uint64_t canary_again; /* once more, so that a word of it in any turn is a load */
  int dump_refused;      /* errno where the region could not be excluded from dumps */
  uintptr_t loader;      /* the dynamic linker's code */
  size_t loader_size;
  /* Non-zero; zero in a forked child, by MADV_WIPEONFORK: tells that wiped memory is no damage. */
  const volatile uint8_t *unforked;
};
/* A page of its own: what is sealed must not share one with what is written. */
union ma_sealed_page
{
  struct ma_sealed sealed;
  char page[MA_PAGE_MOST];
};
extern MA_HIDDEN union ma_sealed_page ma_sealed_page;
#define ma_sealed (ma_sealed_page.sealed)

/* ma_owns, without the way through the exported symbol. */
static inline int
ma_is_ours (const void *p)
{
  return ((uintptr_t)p & MA_UNTAGGED) - ma_sealed.region.base < ma_sealed.region.size;
}

static inline struct ma_unit *
ma_unit_of (const void *p)
{
  /* Of the offset, which whoever asked whether P is ours has already. */
  return ma_sealed.units
         + ((((uintptr_t)p & MA_UNTAGGED) - ma_sealed.region.base) >> MA_UNIT_SHIFT);
}

static inline uint32_t
ma_unit_index (const struct ma_unit *unit)
{
  return (uint32_t)(unit - ma_sealed.units);
}

/* Its first byte. A unit lies at a multiple of its size. */
static inline char *
ma_unit_base (const struct ma_unit *unit)
{
  return (char *)ma_sealed.region.base + ((size_t)ma_unit_index (unit) << MA_UNIT_SHIFT);
}

static inline size_t
ma_unit_offset (const void *p)
{
  return (uintptr_t)p & (MA_UNIT - 1);
}

/* Reserves the region; 0 or an errno. Idempotent. */
int ma_region_init (void);

/* N units in a row, state FREE, or NULL. Slabs are taken from the bottom, large blocks from the
 * middle up, so that mappings of one kind stay together. */
struct ma_unit *ma_region_take (size_t n, int large);
void ma_region_give (struct ma_unit *first, size_t n);
/* The N units after those of a run, if they are nobody's; whether they are the caller's now. */
int ma_region_extend (struct ma_unit *after, size_t n);
/* After that: gives the pages of metadata that tell of nobody's units only back to the kernel. What was
 * there is not known any more: a second free is an invalid one. */
void ma_region_forget (struct ma_unit *first, size_t n);
size_t ma_region_units (void);
/* Where the sizes of a unit's blocks go, at most MA_SLOTS of them. */
uint16_t *ma_region_sizes (const struct ma_unit *unit, size_t slots);
/* And, by slot, the tag of its block, or of the last one (see tag.h); 0: none so far. */
uint8_t *ma_region_tags (const struct ma_unit *unit);

/* Zeroed metadata that is never given back to the kernel; NULL where that has no more. */
void *ma_pool (size_t size);

/* For fork: nobody is inside while it is held. */
void ma_region_lock (void);
void ma_region_unlock (void);

#endif
