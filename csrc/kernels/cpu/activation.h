// sigmoid() and tanh() of vectors, as accurate as torch's: within 1e-7 everywhere in float32, 2e-8
// in the mean, and relatively so for small tanh. NaN is kept, infinities saturate. Included inside
// an ISA's namespace.
//
// Both rest on 2^t = 2^n * (1 + f * q(f)) with t = n + f, |f| <= 1/2, and q a minimax polynomial.

template <class E>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kSigmoidLimit = 60.0f;  // sigmoid(-60) = 9e-27
  static constexpr float kTanhLimit = 9.1f;      // tanh(9.02) rounds to 1
  static constexpr int kTerms = 6;
  static constexpr float kExp2m1[kTerms] = {// relative error 8e-9 on |f| <= 1/2
                                            0.69314718807117623416f,   0.2402265076095730702f,
                                            0.055503568986270729206f,  0.0096180823706166601035f,
                                            0.0013390978248123866895f, 0.00015453262409320673153f};
  static constexpr int kTanhTerms = 5;
  static constexpr float kTanh[kTanhTerms] = {// relative error of tanh 4e-9 on |x| <= 0.55
                                              -0.333333320079769797f, 0.133331137290208719f,
                                              -0.0539094288274605454f, 0.0213093886644434736f,
                                              -0.00661022783111473421f};
};

template <>
struct ActivationConstants<double> {
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kSigmoidLimit = 300.0;
  static constexpr double kTanhLimit = 19.1;
  static constexpr int kTerms = 11;
  static constexpr double kExp2m1[kTerms] = {
      // relative error 2e-17 on |f| <= 1/2
      0.69314718055994530942,     0.24022650695910098491,   0.055504108664821594483,
      0.0096181291076067151349,   0.0013333558146416842887, 0.00015403530442027068268,
      0.000015252733829991239541, 1.3215442410711871372e-6, 1.017806235138810327e-7,
      7.0726213565393493909e-9,   4.4549794711760614859e-10};
  static constexpr int kTanhTerms = 11;
  static constexpr double kTanh[kTanhTerms] = {
      // relative error of tanh 1e-17 on |x| <= 0.55
      -0.33333333333333332561,    0.13333333333332714826,     -0.053968253967434014504,
      0.021869488493666941903,    -0.0088632343978143548378,  0.0035921103786890238773,
      -0.0014556618301007160336,  0.00058893605200740577697,  -0.00023463474108872371445,
      0.000085113136855776715155, -0.000020602765376366341605};
};

// x -> 2^(x * log2_base) split as 2^n * (1 + f * q): n integral, |f| <= 1/2.
template <class V>
FL_INLINE void split_exp(const V& x, typename V::Element log2_base, V& n, V& f, V& q) {
  using C = ActivationConstants<typename V::Element>;
  const V scale = V::set1(log2_base);
  n = round_product(x, scale);
  f = fms(x, scale, n);
  q = V::set1(C::kExp2m1[C::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = C::kTerms - 2; i >= 0; --i) q = fma(q, f, V::set1(C::kExp2m1[i]));
}

// 1 / (a + b) for a = 1 or 2 and a + b far below 2^24 (2^53), as if a + b had not been rounded:
// what the sum loses is known exactly, and is worth a third of the whole error.
template <class V>
FL_INLINE V reciprocal_of_sum(const V& a, const V& b) {
  const V sum = opaque(a + b);  // or the compiler may cancel it below
  return reciprocal(sum, b - (sum - a));
}

template <class V>
FL_INLINE V sigmoid(const V& x) {
  using C = ActivationConstants<typename V::Element>;
  const V one = V::set1(1), limit = V::set1(C::kSigmoidLimit);
  const V bounded = vmax(V::set1(-C::kSigmoidLimit), vmin(limit, x));
  V n, f, q;
  split_exp(bounded, -C::kLog2e, n, f, q);
  return reciprocal_of_sum(one, scale2(fma(f, q, one), n));
}

// x + x^3 * P(x^2) keeps small x exact, 1 - 2 / (1 + e^(2|x|)) loses nothing on large ones.
template <class V>
FL_INLINE V tanh(const V& x) {
  using C = ActivationConstants<typename V::Element>;
  const V one = V::set1(1), two = V::set1(2);
  const V size = vmin(V::set1(C::kTanhLimit), absolute(x));
  V n, f, q;
  split_exp(size, 2 * C::kLog2e, n, f, q);
  const V large = fnma(two, reciprocal(one + scale2(fma(f, q, one), n)), one);
  const V square = x * x;
  V p = V::set1(C::kTanh[C::kTanhTerms - 1]);
#pragma GCC unroll 16
  for (int i = C::kTanhTerms - 2; i >= 0; --i) p = fma(p, square, V::set1(C::kTanh[i]));
  const V small = fma(p * square, x, x);
  return select_greater(size, V::set1(typename V::Element(0.55)), with_sign_of(x, large), small);
}

template <class V>
FL_INLINE V one_minus(const V& x) {
  return V::set1(1) - x;
}
template <class V>
FL_INLINE V one_minus_square(const V& x) {
  return fnma(x, x, V::set1(1));
}
