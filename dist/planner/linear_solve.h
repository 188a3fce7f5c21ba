// Solves systems of linear equations, a few unknowns each: for the costs of a model and for the rates of a machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/base/check.h"

namespace tmamba {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // rows

// The x of a x = b for a square matrix, one column of x for each of b, by Gauss-Jordan elimination with partial
// pivoting. Throws Error where the matrix is singular.
inline Matrix solve_linear(Matrix a, Matrix b) {
  const size_t n = a.size();
  const auto subtract = [](Vector& y, const Vector& x, double factor) {
    for (size_t i = 0; i < y.size(); ++i) y[i] -= factor * x[i];
  };
  for (size_t i = 0; i < n; ++i) {
    size_t pivot = i;
    for (size_t j = i; j < n; ++j) pivot = std::abs(a[j][i]) > std::abs(a[pivot][i]) ? j : pivot;
    std::swap(a[i], a[pivot]), std::swap(b[i], b[pivot]);
    TM_CHECK(a[i][i] != 0, "the equations do not determine unknown ", i);
    for (size_t j = 0; j < n; ++j) {
      const double factor = j == i ? 0 : a[j][i] / a[i][i];
      subtract(a[j], a[i], factor), subtract(b[j], b[i], factor);
    }
  }
  for (size_t i = 0; i < n; ++i) {
    for (double& x : b[i]) x /= a[i][i];
  }
  return b;
}

}  // namespace tmamba
