// The fractions of sigmoid and tanh for vectors, good to about 1 ulp of the result for tanh and 1 ulp of
// 1 for sigmoid; NaN is kept, infinities saturate. Included inside an ISA's namespace.
//
// Both rest on 2^t - 1 = 2^n * (2^f - 1) + (2^n - 1) with t = n + f, |f| <= 1/2, and a minimax
// polynomial for (2^f - 1) / f. u / (u + 2) with u = e^(2x) - 1 keeps small x exact.

template <class E>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kSigmoidLimit = 60.0f;  // sigmoid(-60) = 9e-27; products of fractions stay finite
  static constexpr float kTanhLimit = 9.1f;      // tanh(9.02) rounds to 1
  static constexpr int kTerms = 6;
  static constexpr float kExp2m1[kTerms] = {  // relative error 8e-9 on |f| <= 1/2
      0.69314718807117623416f,   0.2402265076095730702f,    0.055503568986270729206f,
      0.0096180823706166601035f, 0.0013390978248123866895f, 0.00015453262409320673153f};
};

template <>
struct ActivationConstants<double> {
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kSigmoidLimit = 300.0;
  static constexpr double kTanhLimit = 19.1;
  static constexpr int kTerms = 11;
  static constexpr double kExp2m1[kTerms] = {  // relative error 2e-17 on |f| <= 1/2
      0.69314718055994530942,    0.24022650695910098491,    0.055504108664821594483,
      0.0096181291076067151349,  0.0013333558146416842887,  0.00015403530442027068268,
      0.000015252733829991239541, 1.3215442410711871372e-6, 1.017806235138810327e-7,
      7.0726213565393493909e-9,  4.4549794711760614859e-10};
};

// x -> 2^(x * log2_base) split as 2^n * (1 + f * q): n integral, |f| <= 1/2.
template <class E>
FL_INLINE void split_exp(Vec<E> x, E log2_base, Vec<E>& n, Vec<E>& f, Vec<E>& q) {
  using C = ActivationConstants<E>;
  const Vec<E> scale = Vec<E>::set1(log2_base);
  n = round_product(x, scale);
  f = fms(x, scale, n);
  q = Vec<E>::set1(C::kExp2m1[C::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = C::kTerms - 2; i >= 0; --i) q = fma(q, f, Vec<E>::set1(C::kExp2m1[i]));
}

// 1 + e^-x
template <class E>
FL_INLINE Vec<E> sigmoid_denominator(Vec<E> x) {
  using C = ActivationConstants<E>;
  const Vec<E> one = Vec<E>::set1(1), limit = Vec<E>::set1(C::kSigmoidLimit);
  x = vmax(Vec<E>::set1(-C::kSigmoidLimit), vmin(limit, x));
  Vec<E> n, f, q;
  split_exp(x, -C::kLog2e, n, f, q);
  return one + scale2(fma(f, q, one), n);
}

// tanh(x) = u / v with u = e^(2x) - 1, v = u + 2
template <class E>
FL_INLINE void tanh_fraction(Vec<E> x, Vec<E>& u, Vec<E>& v) {
  using C = ActivationConstants<E>;
  const Vec<E> one = Vec<E>::set1(1), limit = Vec<E>::set1(C::kTanhLimit);
  x = vmax(Vec<E>::set1(-C::kTanhLimit), vmin(limit, x));
  Vec<E> n, f, q;
  split_exp(x, 2 * C::kLog2e, n, f, q);
  const Vec<E> power = scale2(one, n);
  u = fma(power, f * q, power - one);
  v = u + Vec<E>::set1(2);
}

template <class E>
FL_INLINE Vec<E> one_minus(Vec<E> x) {
  return Vec<E>::set1(1) - x;
}
template <class E>
FL_INLINE Vec<E> one_minus_square(Vec<E> x) {
  return fnma(x, x, Vec<E>::set1(1));
}
