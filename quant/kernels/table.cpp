// The kernels of one instruction set.
#include "../format/native/vector.hpp"
#include "kernels.hpp"

#define COLDPRESS_NAME_(isa) #isa
#define COLDPRESS_NAME(isa) COLDPRESS_NAME_(isa)

namespace coldpress::rounding::COLDPRESS_ISA {

void feedback(const Chunk& chunk, const float* left, float* levels, float* errors);
void sweep(const Chunk& chunk, const float* gradient, float* levels, float* changes);
void search(const Search& search, float* buffer, float* scale, float* zero);

extern const KernelTable kTable;
const KernelTable kTable = {COLDPRESS_NAME(COLDPRESS_ISA), feedback, sweep, search};

}  // namespace coldpress::rounding::COLDPRESS_ISA
